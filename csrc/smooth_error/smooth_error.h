// Arguments of smooth_error, the same on every device.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>

#include "common/checks.h"
#include "pairwise_error/pairwise_error.h"
#include "smooth_error/smooth_loss.h"

namespace corrdet {

inline SmoothLoss check_smooth_error(const at::Tensor& logits, const at::Tensor& targets,
                                     std::string_view distance, std::string_view balance,
                                     double lam, double delta,
                                     const std::optional<at::Tensor>& ious, bool weight_by_iou) {
  check_samples(logits, targets);
  const SmoothLoss loss = {parse_name<Distance>("distance", distance),
                           parse_name<Balance>("balance", balance), lam, delta, weight_by_iou};
  check_positive("lam", lam);
  check_positive("delta", delta);
  if (ious) check_per_positive("ious", *ious, logits);
  return loss;
}

}  // namespace corrdet
