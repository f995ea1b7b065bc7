#include "smooth_error/sums_pass.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "common/simd.h"
#include "smooth_error/prefix_sums.h"
#include "smooth_error/sigmoid_series.h"
#include "smooth_error/windows.h"

namespace corrdet {
namespace {

// Which samples are negatives above `low`; false if a negative's logit is not finite.
template <typename T>
CORRDET_SIMD bool find_counted(const T* __restrict__ logits, const int8_t* __restrict__ labels,
                               int64_t count, T low, uint8_t* __restrict__ counted) {
  constexpr T highest = std::numeric_limits<T>::max();
  uint8_t faults = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t negative = labels[i] == kNegative;
    const uint8_t above_all = !(logits[i] <= highest), below_all = !(logits[i] >= -highest);
    counted[i] = negative & static_cast<uint8_t>(logits[i] > low);
    faults |= negative & (above_all | below_all);
  }
  return faults == 0;
}

template <int degree>
CORRDET_SIMD void add_samples(const double* __restrict__ offsets, const int32_t* __restrict__ bins,
                              int64_t count, Powers<degree>* __restrict__ table) {
  for (int64_t i = 0; i < count; ++i) add_sample<degree>(offsets[i], table[bins[i]]);
}

// The negatives summed up: per cell, above each edge within its cell, and over all above a cell.
template <typename T>
struct NegativeTable {
  static constexpr int degree = Degrees<T>::cell, part_degree = Degrees<T>::part;

  NegativeTable(const Cells& cells, const std::vector<Powers<part_degree>>& bins, int64_t edges)
      : totals(cells.cell_count()),
        above(edges),
        counts(cells.cell_count() + 1),
        values(cells.cell_count() + 1),
        origin(cells.center(cells.cell_count() - 1)) {
    for (int64_t c = cells.cell_count() - 1; c >= 0; --c) {
      Powers<degree> sum{};
      for (int p = kParts - 1; p >= 0; --p) {
        const auto& part = PartOfCell<degree, part_degree>::at(p);
        const int64_t first = kParts * c + p;
        Powers<part_degree> here{};
        for (int64_t u = cells.first_edge(first + 1) - 1; u >= cells.first_edge(first); --u) {
          add<part_degree>(bins[first + u + 1], here);
          above[u] = sum;
          part.add_powers(here, above[u]);
        }
        add<part_degree>(bins[first + cells.first_edge(first)], here);
        part.add_powers(here, sum);
      }
      counts[c] = counts[c + 1] + sum[0];
      values[c] = values[c + 1] + (sum[0] * (cells.center(c) - origin) + sum[1] * cells.width());
      // An open cell has no bounds, so that its powers say nothing and may overflow.
      if (cells.is_open(c)) std::fill(sum.begin() + 1, sum.end(), 0.0);
      totals.add(c, sum);
    }
  }

  CellPowers<degree> totals;
  std::vector<Powers<degree>> above;
  std::vector<double> counts, values;  // of a cell and all above: samples, and logits from origin
  double origin;
};

// All samples, which the rank is summed over: in cells, above edges in their cell, and the number
// in a cell and all above.
template <typename T>
struct RankTable {
  static constexpr int degree = Degrees<T>::cell;

  RankTable(const Positives& positives, const Cells& cells, const WindowBounds& windows,
            const NegativeTable<T>& negatives)
      : totals(negatives.totals), above(negatives.above), counts(cells.cell_count() + 1, 0.0) {
    const int64_t count = positives.size();
    Powers<degree> positives_above{};
    for (int64_t u = count - 1, v = count - 1; u >= 0; --u) {
      for (; v >= windows.first_above[u]; --v) {
        const auto& [cell, offset] = windows.own[v];
        if (v + 1 == count || cell != windows.own[v + 1].cell) positives_above = {};
        add_sample<degree>(offset, positives_above);
        ++counts[cell];
        Powers<degree> powers{};
        add_sample<degree>(offset, powers);
        totals.add(cell, powers);
      }
      if (v + 1 < count && windows.own[v + 1].cell == windows.edge_cells[u]) {
        add<degree>(positives_above, above[u]);
      }
    }
    for (int64_t c = cells.cell_count() - 1; c >= 0; --c) counts[c] += counts[c + 1];
    for (int64_t c = 0; c < cells.cell_count(); ++c) counts[c] += negatives.counts[c];
  }

  CellPowers<degree> totals;
  std::vector<Powers<degree>> above;
  std::vector<double> counts;
};

// What all tasks of the pass read.
template <typename T>
struct Tables {
  const Positives& positives;
  const Cells& cells;
  const WindowBounds& windows;
  const NegativeTable<T>& negatives;
  const RankTable<T>& everything;
  const SmoothLoss& loss;
  const std::vector<int64_t>& by_iou;
};

// The sums of positives in order of their IoUs. The false positives of each are the negatives and,
// added on the way, the positives of lower IoU.
template <typename T>
class SumsTask {
 public:
  explicit SumsTask(const Tables<T>& tables)
      : in_(tables),
        totals_(tables.negatives.totals),
        added_(tables.positives.paired() ? tables.cells.cell_count() : 0),
        window_(tables.cells.cell_count()),
        integrals_(tables.cells.cell_count() + 2 * kLanes) {}

  void sum(int64_t u, Sums& sums) {
    add_lower_ious(u);
    const double score = in_.positives.scores[u];
    const int64_t first = in_.windows.edge_cells[u], end = in_.windows.ends[u];
    const double y = in_.loss.lam * (in_.cells.center(first) - score);
    window_.fill(first, y, first, end);
    const auto softplus_at = [&](int64_t cell) {
      const double at = y + kCellWidth * static_cast<double>(cell - first);
      const double decay = window_.decay(cell);
      return at > 0.0 ? at + std::log1p(decay) : std::log1p(1.0 / decay);
    };
    const bool cross_entropy = in_.loss.distance == Distance::cross_entropy;
    for (int64_t i = 0; cross_entropy && i < window_.size(); ++i) {
      const int64_t c = window_.first() + i;
      const bool needed = c > first && c < end && totals_.count(c) > 0.0;
      integrals_[i] = needed ? softplus_at(c) : 0.0;
    }
    // The cell of the edge counts in part: what is above the edge.
    Powers<degree> coefficients;
    sigmoid_series<degree>(std::exchange(window_.sigmoid(first), 0.0), coefficients.data());
    const Powers<degree> errors = errors_above_edge(u);
    WindowSums inside = sum_window<T>(window_, cross_entropy ? integrals_.data() : nullptr,
                                      in_.everything.totals, totals_);
    inside.rank += dot<degree>(coefficients, in_.everything.above[u]);
    inside.error += dot<degree>(coefficients, errors);
    if (cross_entropy && errors[0] > 0.0) {
      Powers<degree> primitive;
      softplus_series<degree>(softplus_at(first), coefficients.data(), primitive.data());
      inside.loss += dot<degree>(primitive, errors);
    }
    const auto [beyond, distance] = errors_beyond(end, score);
    sums.negatives[u] = in_.negatives.counts[first + 1] + in_.negatives.above[u][0];
    sums.rank[u] = inside.rank + in_.everything.counts[end];
    sums.error[u] = inside.error + beyond;
    sums.loss[u] = inside.loss / in_.loss.lam + distance;
  }

 private:
  static constexpr int degree = Degrees<T>::cell;

  void add_lower_ious(int64_t u) {
    const Positives& positives = in_.positives;
    while (positives.paired() && positives.ious[in_.by_iou[added_count_]] < positives.ious[u]) {
      const int64_t v = in_.by_iou[added_count_++];
      const auto& [cell, offset] = in_.windows.own[v];
      Powers<degree> powers{};
      add_sample<degree>(offset, powers);
      totals_.add(cell, powers);
      added_.insert(cell, {1.0, positives.scores[v] - in_.negatives.origin});
    }
  }

  // The false positives of u in the cell of its edge, above that.
  Powers<degree> errors_above_edge(int64_t u) const {
    const Positives& positives = in_.positives;
    Powers<degree> errors = in_.negatives.above[u];
    for (int64_t v = in_.windows.first_above[u];
         positives.paired() && v < positives.size() &&
         in_.windows.own[v].cell == in_.windows.edge_cells[u];
         ++v) {
      if (positives.ious[v] < positives.ious[u]) {
        add_sample<degree>(in_.windows.own[v].offset, errors);
      }
    }
    return errors;
  }

  // Beyond a window the sigmoid is 1 and the softplus is y: the number of false positives there,
  // and the sum of their distances.
  std::pair<double, double> errors_beyond(int64_t end, double score) const {
    const NegativeTable<T>& negatives = in_.negatives;
    double number = negatives.counts[end];
    double distance = negatives.values[end] - negatives.counts[end] * (score - negatives.origin);
    if (in_.positives.paired()) {
      const auto all = added_.before(in_.cells.cell_count());
      const auto below = added_.before(end);
      number += all[0] - below[0];
      distance += (all[1] - below[1]) - (all[0] - below[0]) * (score - negatives.origin);
    }
    return {number, distance};
  }

  const Tables<T>& in_;
  CellPowers<degree> totals_;  // of the false positives
  PrefixSums<2> added_;        // number and logits of the positives among them
  Window window_;
  std::vector<double> integrals_;
  int64_t added_count_ = 0;
};

}  // namespace

template <typename T>
std::vector<Powers<Degrees<T>::part>> sum_bins(const T* logits, const Samples& samples,
                                               const Cells& cells,
                                               std::vector<int32_t>& sample_bins) {
  constexpr int degree = Degrees<T>::part;
  const int64_t count = samples.size();
  const int64_t bytes = cells.bin_count() * static_cast<int64_t>(sizeof(Powers<degree>));
  const int64_t chunks = count_chunks(count, bytes);
  std::vector<std::vector<Powers<degree>>> partial(chunks);
  std::vector<char> finite(chunks, 1);
  // A logit is above the lowest edge where it is above that in its own type, rounded down.
  T low = static_cast<T>(cells.low());
  if (low > cells.low()) low = std::nextafter(low, -std::numeric_limits<T>::infinity());
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    std::array<uint8_t, kBlock> is_counted;
    std::array<T, kBlock> counted;
    std::array<int32_t, kBlock> bins, indices;
    std::array<double, kBlock> offsets;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      partial[chunk].resize(cells.bin_count());
      const int64_t end = count * (chunk + 1) / chunks;
      for (int64_t begin = count * chunk / chunks; finite[chunk] && begin < end; begin += kBlock) {
        const int64_t size = std::min(kBlock, end - begin);
        finite[chunk] =
            find_counted(logits + begin, &samples.labels[begin], size, low, is_counted.data());
        int64_t found = 0;
        for (int64_t i = 0; i < size; ++i) {
          counted[found] = logits[begin + i];
          indices[found] = static_cast<int32_t>(i);
          found += is_counted[i];
        }
        cells.locate(counted.data(), found, bins.data(), offsets.data());
        cells.find_bins(counted.data(), found, bins.data());
        for (int64_t i = 0; i < found; ++i) sample_bins[begin + indices[i]] = bins[i];
        add_samples<degree>(offsets.data(), bins.data(), found, partial[chunk].data());
      }
    }
  });
  if (!std::all_of(finite.begin(), finite.end(), [](char value) { return value != 0; })) return {};
  at::parallel_for(0, cells.bin_count(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      for (int64_t bin = begin; bin < end; ++bin) add<degree>(partial[chunk][bin], partial[0][bin]);
    }
  });
  return std::move(partial[0]);
}

template <typename T>
void cell_sums(const Positives& positives, const Cells& cells, const WindowBounds& windows,
               std::vector<Powers<Degrees<T>::part>> bins, const SmoothLoss& loss,
               const std::vector<int64_t>& by_iou, int64_t room, Sums& sums) {
  const int64_t count = positives.size();
  const NegativeTable<T> negatives(cells, bins, count);
  bins = {};
  const RankTable<T> everything(positives, cells, windows, negatives);
  const Tables<T> tables{positives, cells, windows, negatives, everything, loss, by_iou};
  // Additions are in order of IoU, whatever the number of tasks.
  const int64_t tasks =
      std::min<int64_t>({at::get_num_threads(), room, std::max<int64_t>(count / 64, 1)});
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      SumsTask<T> sums_task(tables);
      for (int64_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
        sums_task.sum(by_iou[i], sums);
      }
    }
  });
}

#define CORRDET_INSTANTIATE(T)                                                                    \
  template std::vector<Powers<Degrees<T>::part>> sum_bins(const T*, const Samples&, const Cells&, \
                                                          std::vector<int32_t>&);                 \
  template void cell_sums<T>(const Positives&, const Cells&, const WindowBounds&,                 \
                             std::vector<Powers<Degrees<T>::part>>, const SmoothLoss&,            \
                             const std::vector<int64_t>&, int64_t, Sums&);
CORRDET_INSTANTIATE(float)
CORRDET_INSTANTIATE(double)

}  // namespace corrdet
