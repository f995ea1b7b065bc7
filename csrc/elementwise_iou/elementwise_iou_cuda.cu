#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <string_view>
#include <tuple>

#include "common/cuda_launch.h"
#include "elementwise_iou/elementwise_iou_kernel.cuh"
#include "iou/iou_dispatch.h"

namespace corrdet {
namespace {

template <typename scalar_t>
StridedBoxes<scalar_t> strided(const at::Tensor& boxes) {
  return {boxes.const_data_ptr<scalar_t>(), boxes.stride(0), boxes.stride(1)};
}

at::Tensor elementwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2,
                           std::string_view kind) {
  check_elementwise_boxes(boxes1, boxes2);
  const c10::cuda::CUDAGuard guard(boxes1.device());
  const IouKind selected = iou_kind(kind);
  const int64_t count = boxes1.size(0);
  at::Tensor output = at::empty({count}, boxes1.options());
  if (count == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou", [&] {
        with_kind(selected, [&](auto constant) {
          elementwise_iou_forward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>
              <<<grid_size(ceil_divide(count, kElementwiseThreads)), kElementwiseThreads, 0,
                 c10::cuda::getCurrentCUDAStream()>>>(strided<scalar_t>(boxes1),
                                                      strided<scalar_t>(boxes2), count,
                                                      output.data_ptr<scalar_t>());
          C10_CUDA_KERNEL_LAUNCH_CHECK();
        });
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor> elementwise_iou_backward(const at::Tensor& grad,
                                                            const at::Tensor& boxes1,
                                                            const at::Tensor& boxes2,
                                                            std::string_view kind) {
  check_elementwise_boxes(boxes1, boxes2);
  check_elementwise_grad(grad, boxes1);
  const c10::cuda::CUDAGuard guard(boxes1.device());
  const IouKind selected = iou_kind(kind);
  const int64_t count = boxes1.size(0);
  at::Tensor output1 = at::empty(boxes1.sizes(), boxes1.options());
  at::Tensor output2 = at::empty(boxes2.sizes(), boxes2.options());
  if (count == 0) return {output1, output2};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou_backward", [&] {
        with_kind(selected, [&](auto constant) {
          elementwise_iou_backward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>
              <<<grid_size(ceil_divide(count, kElementwiseThreads)), kElementwiseThreads, 0,
                 c10::cuda::getCurrentCUDAStream()>>>(
                  grad.const_data_ptr<scalar_t>(), grad.stride(0), strided<scalar_t>(boxes1),
                  strided<scalar_t>(boxes2), count, output1.data_ptr<scalar_t>(),
                  output2.data_ptr<scalar_t>());
          C10_CUDA_KERNEL_LAUNCH_CHECK();
        });
      });
  return {output1, output2};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("elementwise_iou", &elementwise_iou);
  m.impl("elementwise_iou_backward", &elementwise_iou_backward);
}

}  // namespace corrdet
