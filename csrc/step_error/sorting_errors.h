// The sorting errors of Rank & Sort Loss (Oksuz et al. 2021), which are between positives alone.
#pragma once

#include <vector>

namespace corrdet {

// Per positive: its sorting error, and the gradient of their sum.
struct SortingErrors {
  std::vector<double> errors, gradient;
};

// scores: ascending; ious: in the same order.
SortingErrors sorting_errors(const std::vector<double>& scores, const std::vector<double>& ious,
                             double delta);

}  // namespace corrdet
