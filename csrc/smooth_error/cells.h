// The line of logits in cells of equal width, kCellWidth / lambda.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/device.h"
#include "smooth_error/polynomials.h"
#include "smooth_error/positives.h"

namespace corrdet {

// Cells are divided into slots, to look for edges in, most of which have none.
constexpr int kSlots = 32;
constexpr int kSlotsPerPart = kSlots / kParts;

// Samples that are located together.
constexpr int64_t kBlock = 512;

// Where a value is in a run of cells: in which slot, counted from the run's start, and how far from
// the centre of its part, in parts.
struct Slot {
  int32_t slot;
  double offset;
};

// scale: slots per unit. All from `last` on is one slot, and what is below the start is in the
// first.
CORRDET_INLINE Slot locate_in_run(double value, double start, double scale, double last) {
  double position = (value - start) * scale;
  position = position > 0.0 ? position : 0.0;
  const int32_t slot = static_cast<int32_t>(position < last ? position : last);
  return {slot, position * (1.0 / kSlotsPerPart) - static_cast<double>(slot / kSlotsPerPart) - 0.5};
}

// Cells are only where positives need them: their windows, from the edge up to where the sigmoid is
// 1, are joined to runs of cells. Each run ends with an open cell that takes all up to the next
// run. Edges cut the parts of their cells into bins, so that no bin has an edge within.
class Cells {
 public:
  struct Location {
    int64_t cell;
    double offset;
  };

  Cells(const Positives& positives, double lam, double saturated, int64_t most);

  bool usable() const { return usable_; }
  int64_t cell_count() const { return first_cells_.back(); }
  int64_t bin_count() const { return kParts * cell_count() + first_edges_.back(); }
  double low() const { return starts_.front(); }
  double width() const { return width_; }

  // The number of edges below a part; its first bin is that many after the part's own number.
  int64_t first_edge(int64_t part) const { return first_edges_[kSlotsPerPart * part]; }

  double center(int64_t cell) const {
    const int64_t run = run_of(cell);
    return starts_[run] + (static_cast<double>(cell - first_cells_[run]) + 0.5) * width_;
  }

  bool is_open(int64_t cell) const { return cell + 1 == first_cells_[run_of(cell) + 1]; }

  // Of a finite value above low(), or of an edge.
  Location locate(double value) const {
    const Slot found = locate_slot(value);
    const double part = static_cast<double>(found.slot % kSlots / kSlotsPerPart);
    return {found.slot / kSlots, (part + 0.5 + found.offset) / kParts - 0.5};
  }

  // The first cell that lies above a value within a run.
  int64_t cell_after(double value) const { return locate(value).cell + 1; }

  // Slots of any values, and their offsets in parts. T is float or double.
  template <typename T>
  void locate(const T* values, int64_t count, int32_t* slots, double* offsets) const;

  // From slots to bins. What is not above low() is in bin 0, below all edges.
  template <typename T>
  void find_bins(const T* values, int64_t count, int32_t* slots) const;

 private:
  // Monotonic, also as rounded: what is in a higher slot is higher.
  Slot locate_slot(double value) const {
    int64_t run = 0;
    if (starts_.size() > 1) {
      run = std::upper_bound(starts_.begin(), starts_.end(), value) - starts_.begin();
      run = std::max<int64_t>(run - 1, 0);
    }
    const int64_t first = first_cells_[run], last = first_cells_[run + 1] - first - 1;
    Slot found =
        locate_in_run(value, starts_[run], kSlots / width_, static_cast<double>(kSlots * last));
    found.slot += static_cast<int32_t>(kSlots * first);
    return found;
  }

  int64_t run_of(int64_t cell) const {
    return std::upper_bound(first_cells_.begin(), first_cells_.end(), cell) - first_cells_.begin() -
           1;
  }

  std::vector<double> edges_;  // and the padding
  double width_;
  std::vector<double> starts_;        // of the runs
  std::vector<int64_t> first_cells_;  // of the runs, and the number of all cells
  std::vector<int32_t> first_edges_;  // of the slots
  bool usable_ = false;
};

}  // namespace corrdet
