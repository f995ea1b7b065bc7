#include "smooth_error/gradient_pass.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <utility>

#include "common/simd.h"
#include "pairwise_error/samples_cpu.h"
#include "smooth_error/prefix_sums.h"
#include "smooth_error/sigmoid_series.h"
#include "smooth_error/windows.h"

namespace corrdet {
namespace {

// What all tasks of the pass read.
struct Inputs {
  const Positives& positives;
  const Cells& cells;
  const WindowBounds& windows;
  double lam;
  const std::vector<int64_t>& by_iou;
  const std::vector<double>& shares;
};

// Polynomials in the offsets from the centres of cells. Each task has its own cells, and goes
// through all positives from the highest IoU down.
template <typename T>
class GradientTask {
 public:
  static constexpr int degree = Degrees<T>::cell, part_degree = Degrees<T>::part;

  // What the positives leave in the cells; of several tasks, each in its own.
  struct Polynomials {
    Polynomials(int64_t cells, int64_t positives) : totals(cells), above(positives) {}
    CellPowers<degree> totals;
    std::vector<Powers<degree>> above;  // what an edge adds to the rest of its cell
  };

  GradientTask(const Inputs& inputs, int64_t first_cell, int64_t end_cell, Polynomials& polynomials)
      : in_(inputs),
        first_cell_(first_cell),
        end_cell_(end_cell),
        totals_(polynomials.totals),
        above_(polynomials.above),
        added_(inputs.positives.paired() ? inputs.cells.cell_count() + 1 : 0),
        window_(inputs.cells.cell_count()),
        added_count_(inputs.positives.size()) {}

  // What the positives of the task's cells get back from those of higher IoU.
  void positives_gradient(std::vector<double>& on_positives) {
    const Positives& positives = in_.positives;
    for (int64_t i = positives.size() - 1; positives.paired() && i >= 0; --i) {
      const int64_t v = in_.by_iou[i];
      while (positives.ious[in_.by_iou[added_count_ - 1]] > positives.ious[v]) add_next();
      const auto& [cell, offset] = in_.windows.own[v];
      if (cell < first_cell_ || cell >= end_cell_) continue;
      double sum = added_.before(cell + 1)[0] + evaluate<degree>(totals_[cell], offset);
      const int64_t end_edge = in_.cells.first_edge(kParts * (cell + 1));
      for (int64_t u = in_.cells.first_edge(kParts * cell); u < end_edge; ++u) {
        if (!(positives.edges[u] < positives.scores[v])) break;
        if (positives.ious[u] > positives.ious[v]) sum += evaluate<degree>(above_[u], offset);
      }
      on_positives[v] = sum;
    }
  }

  // saturated: per cell, the shares of the positives whose window ends below.
  void restrict_to_bins(const std::vector<double>& saturated,
                        std::vector<Powers<part_degree, T>>& bins) {
    while (added_count_ > 0) add_next();
    for (int64_t c = first_cell_; c < end_cell_; ++c) {
      Powers<degree> polynomial = totals_[c];
      polynomial[0] += saturated[c];
      for (int p = 0; p < kParts; ++p) {
        const auto& part = PartOfCell<degree, part_degree>::at(p);
        const int64_t first = kParts * c + p;
        int64_t u = in_.cells.first_edge(first);
        part.restrict_polynomial(polynomial, bins[first + u]);
        for (; u < in_.cells.first_edge(first + 1); ++u) {
          add<degree>(above_[u], polynomial);
          part.restrict_polynomial(polynomial, bins[first + u + 1]);
        }
      }
    }
  }

 private:
  void add_next() {
    const int64_t u = in_.by_iou[--added_count_];
    if (in_.positives.paired()) added_.insert(in_.windows.ends[u], {in_.shares[u]});
    const int64_t edge_cell = in_.windows.edge_cells[u];
    const int64_t begin = std::max(edge_cell, first_cell_);
    const int64_t end = std::min(in_.windows.ends[u], end_cell_);
    if (begin >= end) return;
    const double y = in_.lam * (in_.cells.center(edge_cell) - in_.positives.scores[u]);
    window_.fill(edge_cell, y, begin, end);
    if (begin == edge_cell) {
      sigmoid_series<degree>(std::exchange(window_.sigmoid(begin), 0.0), above_[u].data());
      for (double& coefficient : above_[u]) coefficient *= in_.shares[u];
    }
    add_window<T>(window_, in_.shares[u], totals_);
  }

  const Inputs& in_;
  int64_t first_cell_, end_cell_;
  CellPowers<degree>& totals_;
  std::vector<Powers<degree>>& above_;
  PrefixSums<1> added_;  // shares, by the end of the window
  Window window_;
  int64_t added_count_;  // how many of by_iou are still to be added
};

template <int degree, typename T>
CORRDET_SIMD void evaluate_samples(const double* __restrict__ offsets,
                                   const int32_t* __restrict__ bins, int64_t count,
                                   const Powers<degree, T>* __restrict__ polynomials,
                                   T* __restrict__ gradient) {
  for (int64_t i = 0; i < count; ++i) {
    // Open cells, and bin 0, have a constant alone, which an infinite offset would spoil.
    const T offset = static_cast<T>(offsets[i] < 1.0 ? offsets[i] : 1.0);
    gradient[i] = evaluate<degree, T>(polynomials[bins[i]], offset);
  }
}

}  // namespace

template <typename T>
std::vector<Powers<Degrees<T>::part, T>> cell_gradients(const Positives& positives,
                                                        const Cells& cells,
                                                        const WindowBounds& windows, double lam,
                                                        const std::vector<int64_t>& by_iou,
                                                        const std::vector<double>& shares,
                                                        std::vector<double>& on_positives) {
  const int64_t count = positives.size();
  std::vector<double> saturated(cells.cell_count() + 1, 0.0);
  for (int64_t u = 0; u < count; ++u) saturated[windows.ends[u]] += shares[u];
  for (int64_t c = 0; c < cells.cell_count(); ++c) saturated[c + 1] += saturated[c];
  const Inputs inputs{positives, cells, windows, lam, by_iou, shares};
  typename GradientTask<T>::Polynomials polynomials(cells.cell_count(), count);
  std::vector<Powers<Degrees<T>::part, T>> bins(cells.bin_count());
  const int64_t groups = (cells.cell_count() + kLanes - 1) / kLanes;
  const int64_t tasks =
      std::min<int64_t>(2 * at::get_num_threads(), std::max<int64_t>(count / 64, 1));
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t first_cell = kLanes * (groups * task / tasks);
      const int64_t end_cell = std::min(kLanes * (groups * (task + 1) / tasks), cells.cell_count());
      GradientTask<T> gradient_task(inputs, first_cell, end_cell, polynomials);
      gradient_task.positives_gradient(on_positives);
      gradient_task.restrict_to_bins(saturated, bins);
    }
  });
  return bins;
}

template <typename T>
void evaluate_gradients(const T* logits, const Cells& cells,
                        const std::vector<int32_t>& sample_bins,
                        const std::vector<Powers<Degrees<T>::part, T>>& polynomials, T* gradient) {
  constexpr int degree = Degrees<T>::part;
  const int64_t count = static_cast<int64_t>(sample_bins.size());
  at::parallel_for(0, count, kSampleGrain, [&](int64_t first, int64_t last) {
    std::array<int32_t, kBlock> slots;
    std::array<double, kBlock> offsets;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t size = std::min(kBlock, last - begin);
      cells.locate(logits + begin, size, slots.data(), offsets.data());
      evaluate_samples<degree, T>(offsets.data(), &sample_bins[begin], size, polynomials.data(),
                                  gradient + begin);
    }
  });
}

#define CORRDET_INSTANTIATE(T)                                                                  \
  template std::vector<Powers<Degrees<T>::part, T>> cell_gradients<T>(                          \
      const Positives&, const Cells&, const WindowBounds&, double, const std::vector<int64_t>&, \
      const std::vector<double>&, std::vector<double>&);                                        \
  template void evaluate_gradients(const T*, const Cells&, const std::vector<int32_t>&,         \
                                   const std::vector<Powers<Degrees<T>::part, T>>&, T*);
CORRDET_INSTANTIATE(float)
CORRDET_INSTANTIATE(double)

}  // namespace corrdet
