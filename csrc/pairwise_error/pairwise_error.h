// Pairwise errors between positive samples u and other samples v, summed over all pairs without
// ever making a matrix of them: what the ranking losses are made of.
//
// step: H(x) = clamp(x / (2 delta) + 1/2, 0, 1) of x = s_v - s_u. As a function of either logit it
// is piecewise linear, so with the 2P knots s_u - delta and s_u + delta in order, a count and a sum
// of logits per stretch between knots is all that the positives need of the negatives, and a value
// and a slope per stretch all that the negatives need of the positives.
//
// smooth: the sigmoid and the softplus of y = lambda (s_v - s_u), for pairs with s_v > s_u - delta.
// Cells of width 1/2 in y, cut by the edges s_u - delta, hold the first moments of their samples;
// the function is expanded around the centres of cells. Far enough above 0 it is linear.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <string_view>

namespace corrdet {

enum class StepLoss { kAveragePrecision, kStep, kStepNegatives, kRankSort, kAlrp };

inline StepLoss parse_step_loss(std::string_view name) {
  if (name == "average_precision") return StepLoss::kAveragePrecision;
  if (name == "step") return StepLoss::kStep;
  if (name == "step_negatives") return StepLoss::kStepNegatives;
  if (name == "rank_sort") return StepLoss::kRankSort;
  if (name == "alrp") return StepLoss::kAlrp;
  TORCH_CHECK_VALUE(false,
                    "loss must be one of 'average_precision', 'step', 'step_negatives', "
                    "'rank_sort', 'alrp', got '",
                    name, "'");
}

struct SmoothLoss {
  bool cross_entropy;      // else the sigmoid, with an error-driven update
  bool balance_negatives;  // by the number of counted negatives, else by the rank
  bool weight_by_iou;
  double lam;
  double delta;
};

inline SmoothLoss parse_smooth_loss(std::string_view distance, std::string_view balance, double lam,
                                    double delta, bool weight_by_iou) {
  TORCH_CHECK_VALUE(distance == "cross_entropy" || distance == "sigmoid",
                    "distance must be 'cross_entropy' or 'sigmoid', got '", distance, "'");
  TORCH_CHECK_VALUE(balance == "rank" || balance == "negatives",
                    "balance must be 'rank' or 'negatives', got '", balance, "'");
  TORCH_CHECK_VALUE(std::isfinite(lam) && lam > 0, "lam must be positive and finite, got ", lam);
  TORCH_CHECK_VALUE(std::isfinite(delta) && delta > 0, "delta must be positive and finite, got ",
                    delta);
  return {distance == "cross_entropy", balance == "negatives", weight_by_iou, lam, delta};
}

// The Python functions check first and say more; this guards direct calls of torch.ops.corrdet.
inline void check_samples(const at::Tensor& logits, const at::Tensor& targets) {
  TORCH_CHECK_VALUE(logits.dim() == 1, "logits must have shape (S,), got ", logits.sizes());
  TORCH_CHECK_VALUE(targets.sizes() == logits.sizes(), "targets must have the shape of logits, ",
                    logits.sizes(), ", got ", targets.sizes());
  TORCH_CHECK_VALUE(targets.device() == logits.device(), "targets must be on ", logits.device(),
                    ", got ", targets.device());
}

inline void check_per_positive(const char* name, const at::Tensor& values,
                               const at::Tensor& logits) {
  TORCH_CHECK_VALUE(values.dim() == 1, name, " must have shape (P,), got ", values.sizes());
  TORCH_CHECK_VALUE(values.device() == logits.device(), name, " must be on ", logits.device(),
                    ", got ", values.device());
}

// Of the arithmetic's results: the halves are computed in float32.
inline at::ScalarType result_type(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace corrdet
