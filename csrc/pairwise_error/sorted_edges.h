// Finds where values lie among sorted edges, through a regular grid over them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "common/device.h"

namespace corrdet {

// How many edges may be read past the end of a list of them: fill it up with infinity.
constexpr int64_t kEdgePadding = 4;

// The number of edges below `value`, where all before `begin` are, and none from `end` on. Mostly
// end - begin is small, but not in a way that the processor could predict: the first few edges are
// compared without asking, those from `end` on being higher anyway.
CORRDET_INLINE int64_t count_edges_below(const double* edges, int64_t begin, int64_t end,
                                         double value) {
  if (end - begin > kEdgePadding) {
    return std::lower_bound(edges + begin, edges + end, value) - edges;
  }
  int64_t count = begin;
  for (int64_t i = 0; i < kEdgePadding; ++i) count += edges[begin + i] < value;
  return count;
}

class SortedEdges {
 public:
  // Edges ascending and finite, at least one.
  explicit SortedEdges(std::vector<double> edges)
      : edges_(std::move(edges)), size_(static_cast<int64_t>(edges_.size())) {
    int64_t cells = 64;
    while (cells < 4 * size_ && cells < (int64_t(1) << 22)) cells *= 2;
    last_cell_ = cells - 1;
    low_ = edges_.front();
    high_ = edges_.back();
    const double span = high_ - low_;
    scale_ = span > 0 ? static_cast<double>(cells) / span : 0.0;
    if (!(scale_ < 1e300)) scale_ = 0.0;
    first_.assign(cells + 1, static_cast<int32_t>(0));
    for (const double edge : edges_) ++first_[cell(edge) + 1];
    for (int64_t c = 0; c < cells; ++c) first_[c + 1] += first_[c];
    edges_.insert(edges_.end(), kEdgePadding, std::numeric_limits<double>::infinity());
  }

  int64_t size() const { return size_; }
  double operator[](int64_t i) const { return edges_[i]; }
  double low() const { return low_; }
  double high() const { return high_; }

  // The number of edges below `value`, which is finite and above the lowest edge. `cell` is
  // monotonic, also as rounded: edges in another cell than the value's are below or above it.
  int64_t count_below(double value) const {
    const int64_t c = cell(value);
    return count_edges_below(edges_.data(), first_[c], first_[c + 1], value);
  }

 private:
  int64_t cell(double value) const {
    const double position = (value - low_) * scale_;
    return position < static_cast<double>(last_cell_) ? static_cast<int64_t>(position) : last_cell_;
  }

  std::vector<double> edges_;  // and the padding
  int64_t size_;
  std::vector<int32_t> first_;
  double low_ = 0.0, high_ = 0.0, scale_ = 0.0;
  int64_t last_cell_ = 0;
};

}  // namespace corrdet
