// What pairwise_iou launches, see common/launch.h. Boxes are (count, 4) with any strides.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "pairwise_iou/pairwise_iou_kernel.cuh"

namespace corrdet {

template <typename scalar_t, typename T, typename Device>
Pointer<T> launch_prepare_boxes(Device& device, Pointer<const scalar_t> boxes, int64_t count,
                                int64_t box_step, int64_t field_step, IouKind kind) {
  const Pointer<T> prepared = device.template empty<T>("prepared boxes", kBoxFields * count);
  device.launch({ceil_divide(count, kPairwiseThreads), kPairwiseThreads},
                prepare_boxes_kernel<scalar_t, T>, boxes, count, box_step, field_step,
                kind == IouKind::ciou, prepared);
  return prepared;
}

// output: (count1, count2).
template <typename scalar_t, typename T, typename Device>
void launch_pairwise_iou(Device& device, Pointer<const scalar_t> boxes1, int64_t count1,
                         int64_t box_step1, int64_t field_step1, Pointer<const scalar_t> boxes2,
                         int64_t count2, int64_t box_step2, int64_t field_step2, IouKind kind,
                         Pointer<scalar_t> output) {
  const Pointer<T> prepared1 =
      launch_prepare_boxes<scalar_t, T>(device, boxes1, count1, box_step1, field_step1, kind);
  const Pointer<T> prepared2 =
      launch_prepare_boxes<scalar_t, T>(device, boxes2, count2, box_step2, field_step2, kind);
  with_kind(kind, [&](auto constant) {
    device.launch({ceil_divide(count1 * count2, kForwardTile), kPairwiseThreads},
                  pairwise_iou_forward_kernel<scalar_t, T, constant.value>, prepared1, count1,
                  prepared2, count2, output);
  });
}

// grad: (count1, count2) with any strides; output: (count1, 4), with respect to boxes1.
template <typename scalar_t, typename T, typename Device>
void launch_pairwise_iou_backward(Device& device, Pointer<const scalar_t> grad, int64_t grad_step1,
                                  int64_t grad_step2, Pointer<const scalar_t> boxes1,
                                  int64_t count1, int64_t box_step1, int64_t field_step1,
                                  Pointer<const scalar_t> boxes2, int64_t count2, int64_t box_step2,
                                  int64_t field_step2, IouKind kind, Pointer<scalar_t> output) {
  const int64_t chunks = ceil_divide(count2, kReductionChunk);
  const Pointer<double> partial =
      device.template empty<double>("partial", chunks * kBoxGradientFields * count1);
  const Pointer<T> prepared1 =
      launch_prepare_boxes<scalar_t, T>(device, boxes1, count1, box_step1, field_step1, kind);
  const Pointer<T> prepared2 =
      launch_prepare_boxes<scalar_t, T>(device, boxes2, count2, box_step2, field_step2, kind);
  with_kind(kind, [&](auto constant) {
    const int64_t shared_bytes = kPairwiseBackwardShared * static_cast<int64_t>(sizeof(T));
    device.launch({ceil_divide(count1, kOwnTile) * chunks, kPairwiseThreads, shared_bytes},
                  pairwise_iou_backward_kernel<scalar_t, T, constant.value>, grad, grad_step1,
                  grad_step2, prepared1, count1, prepared2, count2, partial);
  });
  device.launch({ceil_divide(count1, kPairwiseThreads), kPairwiseThreads},
                finish_gradient_kernel<scalar_t, T>, partial, chunks, boxes1, count1, box_step1,
                field_step1, kind == IouKind::ciou, output);
}

CORRDET_EMULATED(pairwise_iou, launch_pairwise_iou<T, T, Device>);
CORRDET_EMULATED(pairwise_iou_backward, launch_pairwise_iou_backward<T, T, Device>);

}  // namespace corrdet
