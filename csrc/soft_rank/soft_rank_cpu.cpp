#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "soft_rank/pool.h"
#include "soft_rank/soft_rank.h"

namespace corrdet {
namespace {

// Values per task, below which another thread costs more than it saves.
constexpr int64_t kGrain = 4096;
// Rows up to this length are sorted by comparison: the histograms of a radix sort cost more.
constexpr int64_t kComparisonSort = 1024;

template <typename Word>
struct Item {
  Word key;
  Word index;
};

// A word of the same order as `value`: -inf first, inf and NaN last (a NaN with its sign set: very
// first).
template <typename T>
auto sort_key(T value) {
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Word sign = Word(1) << (8 * sizeof(T) - 1);
  value += T(0);  // -0 becomes 0
  Word bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits & sign) ? Word(~bits) : Word(bits | sign);
}

// Sorts by key, stable, least significant digit first.
template <typename Word, int kKeyBits>
void radix_sort(std::vector<Item<Word>>& items, std::vector<Item<Word>>& spare) {
  constexpr int kDigitBits = 11;
  constexpr int kDigits = (kKeyBits + kDigitBits - 1) / kDigitBits;
  constexpr Word kMask = (Word(1) << kDigitBits) - 1;
  std::vector<std::array<int64_t, 1 << kDigitBits>> counts(kDigits);
  for (auto& digit_counts : counts) digit_counts.fill(0);
  for (const Item<Word>& item : items) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][(item.key >> (digit * kDigitBits)) & kMask];
    }
  }
  spare.resize(items.size());
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = digit * kDigitBits;
    auto& offsets = counts[digit];
    // A digit that all keys share needs no pass.
    if (offsets[(items[0].key >> shift) & kMask] == static_cast<int64_t>(items.size())) continue;
    int64_t total = 0;
    for (int64_t& offset : offsets) {
      const int64_t count = offset;
      offset = total;
      total += count;
    }
    for (const Item<Word>& item : items) {
      spare[offsets[(item.key >> shift) & kMask]++] = item;
    }
    items.swap(spare);
  }
}

// Room for one row, kept from row to row.
template <typename Word>
struct Workspace {
  std::vector<Item<Word>> items, spare;
  std::vector<Pool> pools;
};

template <typename T, typename Word>
void rank_row(const T* values, int64_t n, double strength, Workspace<Word>& workspace, T* ranks,
              int64_t* permutation, int64_t* pool_starts) {
  auto& items = workspace.items;
  items.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    items[i] = {static_cast<Word>(sort_key(values[i])), static_cast<Word>(i)};
  }
  if (n <= kComparisonSort) {
    std::sort(items.begin(), items.end(), [](const Item<Word>& a, const Item<Word>& b) {
      return a.key != b.key ? a.key < b.key : a.index < b.index;
    });
  } else {
    radix_sort<Word, 8 * sizeof(T)>(items, workspace.spare);
  }
  for (int64_t i = 0; i < n; ++i) {
    permutation[i] = static_cast<int64_t>(items[i].index);
  }
  if (!std::isfinite(values[permutation[0]]) || !std::isfinite(values[permutation[n - 1]])) {
    std::fill_n(ranks, n, std::numeric_limits<T>::quiet_NaN());
    std::fill_n(pool_starts, n, -1);
    return;
  }

  auto& pools = workspace.pools;
  pools.clear();
  for (int64_t i = 0; i < n; ++i) {
    Pool top = {i, 1, static_cast<double>(values[permutation[i]]), 0.0};
    while (!pools.empty() && must_pool(pools.back(), top, strength)) {
      top = pooled(pools.back(), top);
      pools.pop_back();
    }
    pools.push_back(top);
  }
  for (const Pool& pool : pools) {
    for (int64_t i = pool.start; i < pool.start + pool.count; ++i) {
      const int64_t position = permutation[i];
      ranks[position] =
          static_cast<T>(rank_in_pool(pool, static_cast<double>(values[position]), strength));
      pool_starts[i] = pool.start;
    }
  }
}

template <typename T, typename Word>
void forward_kernel(const T* values, int64_t rows, int64_t n, double strength, T* ranks,
                    int64_t* permutation, int64_t* pool_starts) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    Workspace<Word> workspace;
    for (int64_t row = begin; row < end; ++row) {
      rank_row(values + row * n, n, strength, workspace, ranks + row * n, permutation + row * n,
               pool_starts + row * n);
    }
  });
}

template <typename scalar_t>
void backward_kernel(const scalar_t* upstream, const int64_t* permutation,
                     const int64_t* pool_starts, int64_t rows, int64_t n, double strength,
                     scalar_t* gradients) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const scalar_t* const row_upstream = upstream + row * n;
      const int64_t* const positions = permutation + row * n;
      const int64_t* const starts = pool_starts + row * n;
      scalar_t* const row_gradients = gradients + row * n;
      if (starts[0] < 0) {
        std::fill_n(row_gradients, n, std::numeric_limits<scalar_t>::quiet_NaN());
        continue;
      }
      for (int64_t i = 0; i < n;) {
        int64_t stop = i;
        double sum = 0.0;
        for (; stop < n && starts[stop] == starts[i]; ++stop) {
          sum += static_cast<double>(row_upstream[positions[stop]]);
        }
        const double mean = sum / static_cast<double>(stop - i);
        for (; i < stop; ++i) {
          row_gradients[positions[i]] = static_cast<scalar_t>(
              (static_cast<double>(row_upstream[positions[i]]) - mean) / strength);
        }
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> soft_rank(const at::Tensor& values,
                                                         double strength) {
  check_soft_rank(values, strength);
  const bool narrow = values.scalar_type() == at::kHalf || values.scalar_type() == at::kBFloat16;
  const at::Tensor input = (narrow ? values.to(at::kFloat) : values).contiguous();
  at::Tensor ranks = at::empty(input.sizes(), input.options());
  at::Tensor permutation = at::empty(input.sizes(), input.options().dtype(at::kLong));
  at::Tensor pools = at::empty(input.sizes(), input.options().dtype(at::kLong));
  if (input.numel() > 0) {
    const int64_t n = input.size(-1);
    const int64_t rows = input.numel() / n;
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "soft_rank", [&] {
      const auto kernel = sizeof(scalar_t) == 4 && n <= std::numeric_limits<uint32_t>::max()
                              ? &forward_kernel<scalar_t, uint32_t>
                              : &forward_kernel<scalar_t, uint64_t>;
      kernel(input.const_data_ptr<scalar_t>(), rows, n, strength, ranks.data_ptr<scalar_t>(),
             permutation.data_ptr<int64_t>(), pools.data_ptr<int64_t>());
    });
  }
  return {narrow ? ranks.to(values.scalar_type()) : ranks, permutation, pools};
}

at::Tensor soft_rank_backward(const at::Tensor& grad, const at::Tensor& permutation,
                              const at::Tensor& pools, double strength) {
  check_soft_rank_backward(grad, permutation, pools, strength);
  const at::Tensor upstream = grad.contiguous();
  const at::Tensor positions = permutation.contiguous();
  const at::Tensor starts = pools.contiguous();
  at::Tensor output = at::empty(grad.sizes(), grad.options());
  if (grad.numel() == 0) return output;
  const int64_t n = grad.size(-1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "soft_rank_backward", [&] {
        backward_kernel(upstream.const_data_ptr<scalar_t>(), positions.const_data_ptr<int64_t>(),
                        starts.const_data_ptr<int64_t>(), grad.numel() / n, n, strength,
                        output.data_ptr<scalar_t>());
      });
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  // permutation: the position in its row of each value in ascending order. pools: the first sorted
  // position of the pool that each sorted position is in, or -1 throughout an undefined row.
  m.def(
      "soft_rank(Tensor values, float strength)"
      " -> (Tensor ranks, Tensor permutation, Tensor pools)");
  m.def(
      "soft_rank_backward(Tensor grad, Tensor permutation, Tensor pools, float strength)"
      " -> Tensor");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) {
  m.impl("soft_rank", &soft_rank);
  m.impl("soft_rank_backward", &soft_rank_backward);
}

}  // namespace corrdet
