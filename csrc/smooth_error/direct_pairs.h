// All pairs one by one. For few samples, and where logits are so far apart that there would be more
// cells than samples.
#pragma once

#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "smooth_error/positives.h"

namespace corrdet {

template <typename T>
void direct_sums(const T* logits, const Samples& samples, const Positives& positives, double lam,
                 Sums& sums);

// gradient: of the negatives, 0 elsewhere. on_positives: added to, from pairs of positives as their
// false positives.
template <typename T>
void direct_gradients(const T* logits, const Samples& samples, const Positives& positives,
                      double lam, const std::vector<double>& shares, T* gradient,
                      std::vector<double>& on_positives);

}  // namespace corrdet
