// The first pass over the samples: what the positives need of the others, from cells.
#pragma once

#include <cstdint>
#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "smooth_error/cells.h"
#include "smooth_error/polynomials.h"
#include "smooth_error/positives.h"
#include "smooth_error/smooth_loss.h"
#include "smooth_error/window_bounds.h"

namespace corrdet {

// Sums over the negatives of each bin; none if a negative's logit is not finite. `sample_bins`
// receives the bins of the samples, 0 where they do not count. T is float or double.
template <typename T>
std::vector<Powers<Degrees<T>::part>> sum_bins(const T* logits, const Samples& samples,
                                               const Cells& cells,
                                               std::vector<int32_t>& sample_bins);

// by_iou: the positives in ascending order of their IoUs. room: how many tables of all cells there
// is memory for.
template <typename T>
void cell_sums(const Positives& positives, const Cells& cells, const WindowBounds& windows,
               std::vector<Powers<Degrees<T>::part>> bins, const SmoothLoss& loss,
               const std::vector<int64_t>& by_iou, int64_t room, Sums& sums);

}  // namespace corrdet
