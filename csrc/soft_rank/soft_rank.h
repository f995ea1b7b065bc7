// Soft rank: (..., n) -> (..., n). Forward also returns, for each row, the positions of its values
// in ascending order and the start of the pool of each sorted position, which are all that the
// backward pass needs.
#pragma once

#include <ATen/ATen.h>

#include "common/checks.h"

namespace corrdet {

inline void check_soft_rank(const at::Tensor& values, double strength) {
  TORCH_CHECK_VALUE(values.dim() >= 1, "values must have shape (..., n), got a 0-dim tensor");
  check_positive("strength", strength);
}

inline void check_soft_rank_backward(const at::Tensor& grad, const at::Tensor& permutation,
                                     const at::Tensor& pools, double strength) {
  check_soft_rank(grad, strength);
  for (const at::Tensor& saved : {permutation, pools}) {
    TORCH_CHECK_VALUE(saved.sizes() == grad.sizes(),
                      "permutation and pools must have grad's shape ", grad.sizes(), ", got ",
                      saved.sizes());
    TORCH_CHECK_TYPE(saved.scalar_type() == at::kLong, "permutation and pools must be int64, got ",
                     saved.scalar_type());
    TORCH_CHECK_VALUE(saved.device() == grad.device(), "permutation and pools must be on ",
                      grad.device(), ", got ", saved.device());
  }
}

}  // namespace corrdet
