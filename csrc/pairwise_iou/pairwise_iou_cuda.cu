#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <string_view>

#include "common/cuda_launch.h"
#include "iou/iou_dispatch.h"
#include "pairwise_iou/pairwise_iou_kernel.cuh"

namespace corrdet {
namespace {

template <typename scalar_t, typename T>
at::Tensor prepare_boxes(const at::Tensor& boxes, bool with_angle) {
  const int64_t count = boxes.size(0);
  at::Tensor prepared =
      at::empty({kBoxFields, count}, boxes.options().dtype(c10::CppTypeToScalarType<T>::value));
  prepare_boxes_kernel<scalar_t, T><<<grid_size(ceil_divide(count, kPairwiseThreads)),
                                      kPairwiseThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      boxes.const_data_ptr<scalar_t>(), count, boxes.stride(0), boxes.stride(1), with_angle,
      prepared.data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return prepared;
}

at::Tensor pairwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  const c10::cuda::CUDAGuard guard(boxes1.device());
  at::Tensor output = at::empty({boxes1.size(0), boxes2.size(0)}, boxes1.options());
  const IouKind selected = iou_kind(kind);
  if (output.numel() == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou", [&] {
        using T = at::opmath_type<scalar_t>;
        const bool with_angle = selected == IouKind::kCiou;
        const at::Tensor prepared1 = prepare_boxes<scalar_t, T>(boxes1, with_angle);
        const at::Tensor prepared2 = prepare_boxes<scalar_t, T>(boxes2, with_angle);
        with_kind(selected, [&](auto constant) {
          pairwise_iou_forward_kernel<scalar_t, T, constant.value>
              <<<grid_size(ceil_divide(output.numel(), kForwardTile)), kPairwiseThreads, 0,
                 c10::cuda::getCurrentCUDAStream()>>>(prepared1.const_data_ptr<T>(), boxes1.size(0),
                                                      prepared2.const_data_ptr<T>(), boxes2.size(0),
                                                      output.data_ptr<scalar_t>());
          C10_CUDA_KERNEL_LAUNCH_CHECK();
        });
      });
  return output;
}

at::Tensor pairwise_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1,
                                 const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  check_pairwise_grad(grad, boxes1, boxes2);
  const c10::cuda::CUDAGuard guard(boxes1.device());
  const IouKind selected = iou_kind(kind);
  if (grad.numel() == 0) return at::zeros(boxes1.sizes(), boxes1.options());
  at::Tensor output = at::empty(boxes1.sizes(), boxes1.options());
  const int64_t own_count = boxes1.size(0);
  const int64_t chunks = ceil_divide(boxes2.size(0), kReductionChunk);
  const at::Tensor partial =
      at::empty({chunks, kBoxGradientFields, own_count}, boxes1.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou_backward", [&] {
        using T = at::opmath_type<scalar_t>;
        const bool with_angle = selected == IouKind::kCiou;
        const at::Tensor prepared1 = prepare_boxes<scalar_t, T>(boxes1, with_angle);
        const at::Tensor prepared2 = prepare_boxes<scalar_t, T>(boxes2, with_angle);
        const auto stream = c10::cuda::getCurrentCUDAStream();
        with_kind(selected, [&](auto constant) {
          pairwise_iou_backward_kernel<scalar_t, T, constant.value>
              <<<grid_size(ceil_divide(own_count, kOwnTile) * chunks), kPairwiseThreads,
                 kPairwiseBackwardShared * sizeof(T), stream>>>(
                  grad.const_data_ptr<scalar_t>(), grad.stride(0), grad.stride(1),
                  prepared1.const_data_ptr<T>(), own_count, prepared2.const_data_ptr<T>(),
                  boxes2.size(0), partial.data_ptr<double>());
          C10_CUDA_KERNEL_LAUNCH_CHECK();
        });
        finish_gradient_kernel<scalar_t, T>
            <<<grid_size(ceil_divide(own_count, kPairwiseThreads)), kPairwiseThreads, 0, stream>>>(
                partial.const_data_ptr<double>(), chunks, boxes1.const_data_ptr<scalar_t>(),
                own_count, boxes1.stride(0), boxes1.stride(1), with_angle,
                output.data_ptr<scalar_t>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("pairwise_iou", &pairwise_iou);
  m.impl("pairwise_iou_backward", &pairwise_iou_backward);
}

}  // namespace corrdet
