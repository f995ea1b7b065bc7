#include "smooth_error/cells.h"

#include <cmath>
#include <limits>

#include "common/simd.h"
#include "pairwise_error/sorted_edges.h"
#include "smooth_error/smooth_loss.h"

namespace corrdet {
namespace {

template <typename T>
CORRDET_SIMD void locate_all_in_run(const T* __restrict__ values, int64_t count, double start,
                                    double scale, double last, int32_t* __restrict__ slots,
                                    double* __restrict__ offsets) {
  for (int64_t i = 0; i < count; ++i) {
    const Slot found = locate_in_run(static_cast<double>(values[i]), start, scale, last);
    slots[i] = found.slot;
    offsets[i] = found.offset;
  }
}

template <typename T>
CORRDET_SIMD void find_all_bins(const double* __restrict__ edges,
                                const int32_t* __restrict__ first_edges,
                                const T* __restrict__ values, int64_t count,
                                int32_t* __restrict__ bins) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = first_edges[bins[i]], end = first_edges[bins[i] + 1];
    const int64_t below = count_edges_below(edges, begin, end, static_cast<double>(values[i]));
    bins[i] = bins[i] / kSlotsPerPart + static_cast<int32_t>(below);
  }
}

}  // namespace

Cells::Cells(const Positives& positives, double lam, double saturated, int64_t most)
    : edges_(positives.edges), width_(kCellWidth / lam) {
  if (is_far(positives.scores.front(), lam, positives.delta) ||
      is_far(positives.scores.back(), lam, positives.delta)) {
    return;
  }
  const double reach = saturated / lam;
  double end = -std::numeric_limits<double>::infinity();
  double cells = 0.0;
  const auto close_run = [&] {
    if (starts_.empty()) return;
    cells += std::floor((end - starts_.back()) * (1.0 / width_)) + 2.0;
  };
  for (int64_t u = 0; u < positives.size(); ++u) {
    if (edges_[u] > end + width_) {
      close_run();
      starts_.push_back(edges_[u]);
      first_cells_.push_back(static_cast<int64_t>(cells));
    }
    end = positives.scores[u] + reach;
    // A window below what the logits can tell, or more cells than are worth their memory.
    if (!(end - starts_.back() < static_cast<double>(most) * width_)) return;
  }
  close_run();
  if (!(cells < static_cast<double>(most))) return;
  first_cells_.push_back(static_cast<int64_t>(cells));
  usable_ = true;
  first_edges_.assign(kSlots * cell_count() + 1, 0);
  for (const double edge : positives.edges) ++first_edges_[locate_slot(edge).slot + 1];
  edges_.insert(edges_.end(), kEdgePadding, std::numeric_limits<double>::infinity());
  for (size_t i = 1; i < first_edges_.size(); ++i) first_edges_[i] += first_edges_[i - 1];
}

template <typename T>
void Cells::locate(const T* values, int64_t count, int32_t* slots, double* offsets) const {
  if (starts_.size() == 1) {
    locate_all_in_run(values, count, starts_[0], kSlots / width_,
                      static_cast<double>(kSlots * (cell_count() - 1)), slots, offsets);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const Slot found = locate_slot(static_cast<double>(values[i]));
      slots[i] = found.slot;
      offsets[i] = found.offset;
    }
  }
}

template <typename T>
void Cells::find_bins(const T* values, int64_t count, int32_t* slots) const {
  find_all_bins(edges_.data(), first_edges_.data(), values, count, slots);
}

#define CORRDET_INSTANTIATE(T)                                             \
  template void Cells::locate(const T*, int64_t, int32_t*, double*) const; \
  template void Cells::find_bins(const T*, int64_t, int32_t*) const;
CORRDET_INSTANTIATE(float)
CORRDET_INSTANTIATE(double)

}  // namespace corrdet
