#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "pairwise_error/samples_cuda.h"
#include "smooth_error/smooth_error.h"
#include "smooth_error/smooth_error_launch.cuh"

namespace corrdet {
namespace {

std::tuple<at::Tensor, at::Tensor> smooth_error(const at::Tensor& logits, const at::Tensor& targets,
                                                c10::string_view distance, c10::string_view balance,
                                                double lam, double delta,
                                                const std::optional<at::Tensor>& ious,
                                                bool weight_by_iou) {
  const SmoothLoss loss =
      check_smooth_error(logits, targets, {distance.data(), distance.size()},
                         {balance.data(), balance.size()}, lam, delta, ious, weight_by_iou);
  check_count(logits);
  CudaDevice device(logits);
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  const at::Tensor value = at::zeros({1}, input.options());
  const at::Tensor gradients = at::empty({1, input.numel()}, input.options());
  if (input.numel() == 0) return {value, gradients};
  const at::Tensor wide_ious = ious ? ious->to(at::kDouble).contiguous() : at::Tensor();
  with_samples(input, targets, [&](const auto* values, const auto* target_values) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(values)>>;
    launch_smooth_error<T>(
        device, values, target_values, input.numel(), loss.distance, loss.balance, lam, delta,
        ious ? wide_ious.const_data_ptr<double>() : nullptr, ious ? wide_ious.numel() : -1,
        weight_by_iou, -1, value.data_ptr<T>(), gradients.data_ptr<T>());
  });
  return {value, gradients};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) { m.impl("smooth_error", &smooth_error); }

}  // namespace corrdet
