// The losses on the sigmoid and the softplus, by name.
#pragma once

#include "common/device.h"
#include "common/names.h"

namespace corrdet {

// cross_entropy: softplus(lam x) / lam. sigmoid: with the error-driven update.
#define CORRDET_DISTANCES(NAME) NAME(cross_entropy) NAME(sigmoid)
CORRDET_NAMED(Distance, CORRDET_DISTANCES);

// rank: the sum of sigmoids over all samples that count. negatives: how many of them count.
#define CORRDET_BALANCES(NAME) NAME(rank) NAME(negatives)
CORRDET_NAMED(Balance, CORRDET_BALANCES);

struct SmoothLoss {
  Distance distance;
  Balance balance;
  double lam;
  double delta;
  bool weight_by_iou;
};

// Whether edges and cells beside a positive's logit would be rounded too coarsely; pairs are then
// summed one by one, from their differences.
CORRDET_INLINE bool is_far(double score, double lam, double delta) {
  const double largest = 1048576.0 * (lam * delta > 1.0 ? 1.0 / lam : delta);
  return score > largest || score < -largest;
}

}  // namespace corrdet
