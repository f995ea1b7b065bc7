// Device code of elementwise_iou: a thread per pair. It compiles under nvcc and under
// tests/ops/emulation, which includes its own definitions of the CUDA words first. scalar_t is the
// dtype of the tensors, T that of the arithmetic.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "iou/iou.h"

namespace corrdet {

constexpr int kElementwiseThreads = 256;

// (count, 4) with any strides.
template <typename scalar_t>
struct StridedBoxes {
  Pointer<const scalar_t> values;
  int64_t box_step;
  int64_t field_step;
};

template <typename T, typename scalar_t>
__device__ void read_coordinates(const StridedBoxes<scalar_t>& boxes, int64_t n,
                                 T (&coordinates)[4]) {
  for (int field = 0; field < 4; ++field) {
    coordinates[field] =
        static_cast<T>(boxes.values[n * boxes.box_step + field * boxes.field_step]);
  }
}

template <typename scalar_t, typename T, IouKind kind>
__global__ void __launch_bounds__(kElementwiseThreads, 2)
    elementwise_iou_forward_kernel(StridedBoxes<scalar_t> boxes1, StridedBoxes<scalar_t> boxes2,
                                   int64_t count, Pointer<scalar_t> output) {
  constexpr bool with_angle = kind == IouKind::ciou;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < count;
       n += step) {
    T a[4], b[4];
    read_coordinates(boxes1, n, a);
    read_coordinates(boxes2, n, b);
    output[n] = static_cast<scalar_t>(iou<kind>(make_box(a[0], a[1], a[2], a[3], with_angle),
                                                make_box(b[0], b[1], b[2], b[3], with_angle)));
  }
}

// output1, output2: (count, 4), contiguous.
template <typename scalar_t, typename T, IouKind kind>
__global__ void __launch_bounds__(kElementwiseThreads, 2)
    elementwise_iou_backward_kernel(Pointer<const scalar_t> upstream, int64_t upstream_step,
                                    StridedBoxes<scalar_t> boxes1, StridedBoxes<scalar_t> boxes2,
                                    int64_t count, Pointer<scalar_t> output1,
                                    Pointer<scalar_t> output2) {
  constexpr bool with_angle = kind == IouKind::ciou;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < count;
       n += step) {
    T a[4], b[4], gradient[4];
    read_coordinates(boxes1, n, a);
    read_coordinates(boxes2, n, b);
    const Box<T> box1 = make_box(a[0], a[1], a[2], a[3], with_angle);
    const Box<T> box2 = make_box(b[0], b[1], b[2], b[3], with_angle);
    const T weight = static_cast<T>(upstream[n * upstream_step]);
    coordinate_gradient<T, T>(a[0], a[1], a[2], a[3], iou_gradient<kind>(box1, box2, weight),
                              with_angle, gradient);
    for (int field = 0; field < 4; ++field) {
      output1[4 * n + field] = static_cast<scalar_t>(gradient[field]);
    }
    coordinate_gradient<T, T>(b[0], b[1], b[2], b[3], iou_gradient<kind>(box2, box1, weight),
                              with_angle, gradient);
    for (int field = 0; field < 4; ++field) {
      output2[4 * n + field] = static_cast<scalar_t>(gradient[field]);
    }
  }
}

}  // namespace corrdet
