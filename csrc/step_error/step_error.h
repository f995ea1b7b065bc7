// Arguments and results of step_error, the same on every device.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "common/checks.h"
#include "pairwise_error/pairwise_error.h"
#include "step_error/step_loss.h"

namespace corrdet {

inline StepLoss check_step_error(const at::Tensor& logits, const at::Tensor& targets,
                                 std::string_view loss_name, double delta,
                                 const std::optional<at::Tensor>& localization) {
  check_samples(logits, targets);
  const StepLoss loss = parse_name<StepLoss>("loss", loss_name);
  check_positive("delta", delta);
  TORCH_CHECK_VALUE(localization.has_value() == has_localization(loss),
                    "localization is for, and needed by, the loss 'alrp'");
  if (localization) check_per_positive("localization", *localization, logits);
  return loss;
}

struct StepErrorResults {
  // input: logits in the type of the arithmetic.
  StepErrorResults(const at::Tensor& input, StepLoss loss,
                   const std::optional<at::Tensor>& localization)
      : values(at::zeros({2}, input.options())),
        gradients(at::empty({gradient_rows(loss), input.numel()}, input.options())),
        localization_gradient(
            at::zeros({localization ? localization->numel() : 0}, input.options())) {}

  std::tuple<at::Tensor, at::Tensor, at::Tensor> tensors() const {
    return {values, gradients, localization_gradient};
  }

  at::Tensor values, gradients, localization_gradient;
};

}  // namespace corrdet
