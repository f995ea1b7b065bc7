// Pairwise errors between positive samples u and other samples v, summed over all pairs without
// ever making a matrix of them: what the ranking losses are made of. Here is what the operators
// step_error and smooth_error share.
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

namespace corrdet {

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

// Targets in a dtype that the kernels read.
inline at::Tensor readable_targets(const at::Tensor& targets) {
  const bool narrow = targets.scalar_type() == at::kHalf || targets.scalar_type() == at::kBFloat16;
  return (narrow ? targets.to(at::kFloat) : targets).contiguous();
}

}  // namespace corrdet
