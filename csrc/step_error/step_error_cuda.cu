#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "pairwise_error/samples_cuda.h"
#include "step_error/step_error.h"
#include "step_error/step_error_launch.cuh"

namespace corrdet {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> step_error(
    const at::Tensor& logits, const at::Tensor& targets, c10::string_view loss_name, double delta,
    const std::optional<at::Tensor>& localization) {
  const StepLoss loss =
      check_step_error(logits, targets, {loss_name.data(), loss_name.size()}, delta, localization);
  check_count(logits);
  CudaDevice device(logits);
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  const StepErrorResults results(input, loss, localization);
  if (input.numel() == 0) return results.tensors();
  const at::Tensor losses =
      localization ? localization->to(at::kDouble).contiguous() : at::Tensor();
  with_samples(input, targets, [&](const auto* values, const auto* target_values) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(values)>>;
    launch_step_error<T>(device, values, target_values, input.numel(), loss, delta,
                         localization ? losses.const_data_ptr<double>() : nullptr,
                         localization ? losses.numel() : -1, results.values.data_ptr<T>(),
                         results.gradients.data_ptr<T>(),
                         results.localization_gradient.data_ptr<T>());
  });
  return results.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) { m.impl("step_error", &step_error); }

}  // namespace corrdet
