// What elementwise_iou launches, see common/launch.h. Boxes are (count, 4) with any strides.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "elementwise_iou/elementwise_iou_kernel.cuh"

namespace corrdet {

// output: (count,).
template <typename scalar_t, typename T, typename Device>
void launch_elementwise_iou(Device& device, Pointer<const scalar_t> boxes1, int64_t box_step1,
                            int64_t field_step1, Pointer<const scalar_t> boxes2, int64_t box_step2,
                            int64_t field_step2, int64_t count, IouKind kind,
                            Pointer<scalar_t> output) {
  const StridedBoxes<scalar_t> strided1{boxes1, box_step1, field_step1};
  const StridedBoxes<scalar_t> strided2{boxes2, box_step2, field_step2};
  with_kind(kind, [&](auto constant) {
    device.launch({ceil_divide(count, kElementwiseThreads), kElementwiseThreads},
                  elementwise_iou_forward_kernel<scalar_t, T, constant.value>, strided1, strided2,
                  count, output);
  });
}

// grad: (count,) with any stride; output1, output2: (count, 4).
template <typename scalar_t, typename T, typename Device>
void launch_elementwise_iou_backward(Device& device, Pointer<const scalar_t> grad,
                                     int64_t grad_step, Pointer<const scalar_t> boxes1,
                                     int64_t box_step1, int64_t field_step1,
                                     Pointer<const scalar_t> boxes2, int64_t box_step2,
                                     int64_t field_step2, int64_t count, IouKind kind,
                                     Pointer<scalar_t> output1, Pointer<scalar_t> output2) {
  const StridedBoxes<scalar_t> strided1{boxes1, box_step1, field_step1};
  const StridedBoxes<scalar_t> strided2{boxes2, box_step2, field_step2};
  with_kind(kind, [&](auto constant) {
    device.launch({ceil_divide(count, kElementwiseThreads), kElementwiseThreads},
                  elementwise_iou_backward_kernel<scalar_t, T, constant.value>, grad, grad_step,
                  strided1, strided2, count, output1, output2);
  });
}

CORRDET_EMULATED(elementwise_iou, launch_elementwise_iou<T, T, Device>);
CORRDET_EMULATED(elementwise_iou_backward, launch_elementwise_iou_backward<T, T, Device>);

}  // namespace corrdet
