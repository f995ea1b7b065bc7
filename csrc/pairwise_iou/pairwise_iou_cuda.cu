#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <string_view>

#include "common/cuda_device.h"
#include "iou/iou_checks.h"
#include "pairwise_iou/pairwise_iou_launch.cuh"

namespace corrdet {
namespace {

at::Tensor pairwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  CudaDevice device(boxes1);
  at::Tensor output = at::empty({boxes1.size(0), boxes2.size(0)}, boxes1.options());
  const IouKind selected = iou_kind(kind);
  if (output.numel() == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou", [&] {
        launch_pairwise_iou<scalar_t, at::opmath_type<scalar_t>>(
            device, boxes1.const_data_ptr<scalar_t>(), boxes1.size(0), boxes1.stride(0),
            boxes1.stride(1), boxes2.const_data_ptr<scalar_t>(), boxes2.size(0), boxes2.stride(0),
            boxes2.stride(1), selected, output.data_ptr<scalar_t>());
      });
  return output;
}

at::Tensor pairwise_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1,
                                 const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  check_pairwise_grad(grad, boxes1, boxes2);
  CudaDevice device(boxes1);
  const IouKind selected = iou_kind(kind);
  if (grad.numel() == 0) return at::zeros(boxes1.sizes(), boxes1.options());
  at::Tensor output = at::empty(boxes1.sizes(), boxes1.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou_backward", [&] {
        launch_pairwise_iou_backward<scalar_t, at::opmath_type<scalar_t>>(
            device, grad.const_data_ptr<scalar_t>(), grad.stride(0), grad.stride(1),
            boxes1.const_data_ptr<scalar_t>(), boxes1.size(0), boxes1.stride(0), boxes1.stride(1),
            boxes2.const_data_ptr<scalar_t>(), boxes2.size(0), boxes2.stride(0), boxes2.stride(1),
            selected, output.data_ptr<scalar_t>());
      });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("pairwise_iou", &pairwise_iou);
  m.impl("pairwise_iou_backward", &pairwise_iou_backward);
}

}  // namespace corrdet
