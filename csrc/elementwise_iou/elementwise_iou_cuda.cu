#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <string_view>
#include <tuple>

#include "common/cuda_device.h"
#include "elementwise_iou/elementwise_iou_launch.cuh"
#include "iou/iou_checks.h"

namespace corrdet {
namespace {

at::Tensor elementwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2,
                           std::string_view kind) {
  check_elementwise_boxes(boxes1, boxes2);
  CudaDevice device(boxes1);
  const IouKind selected = iou_kind(kind);
  at::Tensor output = at::empty({boxes1.size(0)}, boxes1.options());
  if (boxes1.size(0) == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou", [&] {
        launch_elementwise_iou<scalar_t, at::opmath_type<scalar_t>>(
            device, boxes1.const_data_ptr<scalar_t>(), boxes1.stride(0), boxes1.stride(1),
            boxes2.const_data_ptr<scalar_t>(), boxes2.stride(0), boxes2.stride(1), boxes1.size(0),
            selected, output.data_ptr<scalar_t>());
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor> elementwise_iou_backward(const at::Tensor& grad,
                                                            const at::Tensor& boxes1,
                                                            const at::Tensor& boxes2,
                                                            std::string_view kind) {
  check_elementwise_boxes(boxes1, boxes2);
  check_elementwise_grad(grad, boxes1);
  CudaDevice device(boxes1);
  const IouKind selected = iou_kind(kind);
  at::Tensor output1 = at::empty(boxes1.sizes(), boxes1.options());
  at::Tensor output2 = at::empty(boxes2.sizes(), boxes2.options());
  if (boxes1.size(0) == 0) return {output1, output2};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou_backward", [&] {
        launch_elementwise_iou_backward<scalar_t, at::opmath_type<scalar_t>>(
            device, grad.const_data_ptr<scalar_t>(), grad.stride(0),
            boxes1.const_data_ptr<scalar_t>(), boxes1.stride(0), boxes1.stride(1),
            boxes2.const_data_ptr<scalar_t>(), boxes2.stride(0), boxes2.stride(1), boxes1.size(0),
            selected, output1.data_ptr<scalar_t>(), output2.data_ptr<scalar_t>());
      });
  return {output1, output2};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("elementwise_iou", &elementwise_iou);
  m.impl("elementwise_iou_backward", &elementwise_iou_backward);
}

}  // namespace corrdet
