// The second pass over the samples: what they get back from the positives, a polynomial per bin.
#pragma once

#include <cstdint>
#include <vector>

#include "smooth_error/cells.h"
#include "smooth_error/polynomials.h"
#include "smooth_error/positives.h"
#include "smooth_error/window_bounds.h"

namespace corrdet {

// For each bin the polynomial of the sum over positives of shares[u] * sigmoid(lam (x - s_u)); and
// for each positive v that sum over the positives of higher IoU. T is float or double.
template <typename T>
std::vector<Powers<Degrees<T>::part, T>> cell_gradients(const Positives& positives,
                                                        const Cells& cells,
                                                        const WindowBounds& windows, double lam,
                                                        const std::vector<int64_t>& by_iou,
                                                        const std::vector<double>& shares,
                                                        std::vector<double>& on_positives);

// gradient: of all samples, from the polynomials of their bins.
template <typename T>
void evaluate_gradients(const T* logits, const Cells& cells,
                        const std::vector<int32_t>& sample_bins,
                        const std::vector<Powers<Degrees<T>::part, T>>& polynomials, T* gradient);

}  // namespace corrdet
