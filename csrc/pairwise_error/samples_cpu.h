// The samples of a ranking loss as the CPU kernels read them.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "pairwise_error/pairwise_error.h"

namespace corrdet {

constexpr int8_t kPositive = 1, kNegative = 0, kIgnored = -1;

// Samples per task, below which another thread costs more than it saves.
constexpr int64_t kSampleGrain = 16384;

struct Samples {
  std::vector<int8_t> labels;      // (S,)
  std::vector<int64_t> positives;  // (P,) their indices among the samples, ascending

  int64_t size() const { return static_cast<int64_t>(labels.size()); }
};

// Reads targets: 0 is a negative, -1 ignored, and a positive is 1 or, with soft targets, in (0, 1].
template <typename target_t>
Samples read_samples(const target_t* targets, int64_t count, bool soft) {
  Samples samples;
  samples.labels.resize(count);
  const int64_t stretches = (count + kSampleGrain - 1) / kSampleGrain;
  std::vector<std::vector<int64_t>> found(stretches);
  std::vector<int64_t> faulty(stretches, -1);
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    for (int64_t stretch = first; stretch < last; ++stretch) {
      const int64_t end = std::min(count, (stretch + 1) * kSampleGrain);
      for (int64_t i = stretch * kSampleGrain; i < end; ++i) {
        const target_t target = targets[i];
        if (target == target_t(0)) {
          samples.labels[i] = kNegative;
        } else if (target == target_t(1) ||
                   (soft && target > target_t(0) && target < target_t(1))) {
          samples.labels[i] = kPositive;
          found[stretch].push_back(i);
        } else if (std::is_signed_v<target_t> && target == static_cast<target_t>(-1)) {
          samples.labels[i] = kIgnored;
        } else {
          if (faulty[stretch] < 0) faulty[stretch] = i;
        }
      }
    }
  });
  for (int64_t stretch = 0; stretch < stretches; ++stretch) {
    const int64_t index = faulty[stretch];
    if (index >= 0) {
      TORCH_CHECK_VALUE(!soft, "targets must be -1 or in [0, 1], got ", +targets[index],
                        " at position ", index);
      TORCH_CHECK_VALUE(soft, "labels must be -1, 0 or 1, got ", +targets[index], " at position ",
                        index);
    }
    samples.positives.insert(samples.positives.end(), found[stretch].begin(), found[stretch].end());
  }
  return samples;
}

inline Samples read_samples(const at::Tensor& all_targets, bool soft) {
  const at::Tensor targets = readable_targets(all_targets);
  Samples samples;
  AT_DISPATCH_ALL_TYPES_AND(at::kBool, targets.scalar_type(), "targets", [&] {
    samples = read_samples(targets.const_data_ptr<scalar_t>(), targets.numel(), soft);
  });
  return samples;
}

// Values of the positives, (P,) in the order of the samples, as float64. `check` refuses values
// outside [0, 1].
inline std::vector<double> read_per_positive(const char* name, const at::Tensor& values,
                                             const Samples& samples, bool check) {
  const int64_t count = static_cast<int64_t>(samples.positives.size());
  TORCH_CHECK_VALUE(values.numel() == count, name, " must have one value per positive, ", count,
                    ", got ", values.numel());
  const at::Tensor wide = values.detach().to(at::kDouble).contiguous();
  const double* const data = wide.const_data_ptr<double>();
  for (int64_t i = 0; check && i < count; ++i) {
    TORCH_CHECK_VALUE(!(data[i] < 0.0 || data[i] > 1.0), name, " must be in [0, 1], got ", data[i],
                      " at position ", i);
  }
  return std::vector<double>(data, data + count);
}

// The permutation that sorts `values` in ascending order, stable.
inline std::vector<int64_t> ascending_order(const std::vector<double>& values) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return values[a] != values[b] ? values[a] < values[b] : a < b;
  });
  return order;
}

template <typename T>
bool all_finite(const std::vector<T>& values) {
  return std::all_of(values.begin(), values.end(), [](T value) { return std::isfinite(value); });
}

// How many partial tables of `bytes` the samples are summed in: their number and bounds, and so the
// order of additions, depend on shapes alone, not on the number of threads.
inline int64_t count_chunks(int64_t samples, int64_t bytes) {
  constexpr int64_t kMostChunks = 32, kBytesPerSample = 16;
  const int64_t allowed = samples * kBytesPerSample / std::max<int64_t>(bytes, 1);
  return std::clamp<int64_t>(std::min(allowed, samples / kSampleGrain), 1, kMostChunks);
}

}  // namespace corrdet
