#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "iou/iou_checks.h"

namespace corrdet {
namespace {

constexpr int64_t kGrain = 4096;

template <typename T, typename Row>
Box<T> read_box(const Row& row, bool with_angle) {
  return make_box<T>(row[0], row[1], row[2], row[3], with_angle);
}

template <typename scalar_t, typename T, IouKind kind>
void forward_kernel(const at::Tensor& boxes1, const at::Tensor& boxes2, at::Tensor& output) {
  constexpr bool with_angle = kind == IouKind::ciou;
  const auto first = boxes1.accessor<scalar_t, 2>();
  const auto second = boxes2.accessor<scalar_t, 2>();
  scalar_t* const result = output.data_ptr<scalar_t>();
  at::parallel_for(0, boxes1.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      result[n] = static_cast<scalar_t>(
          iou<kind>(read_box<T>(first[n], with_angle), read_box<T>(second[n], with_angle)));
    }
  });
}

template <typename scalar_t, typename T, IouKind kind>
void backward_kernel(const at::Tensor& grad, const at::Tensor& boxes1, const at::Tensor& boxes2,
                     at::Tensor& output1, at::Tensor& output2) {
  constexpr bool with_angle = kind == IouKind::ciou;
  const auto upstream = grad.accessor<scalar_t, 1>();
  const auto first = boxes1.accessor<scalar_t, 2>();
  const auto second = boxes2.accessor<scalar_t, 2>();
  scalar_t* const result1 = output1.data_ptr<scalar_t>();
  scalar_t* const result2 = output2.data_ptr<scalar_t>();
  at::parallel_for(0, boxes1.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Box<T> a = read_box<T>(first[n], with_angle);
      const Box<T> b = read_box<T>(second[n], with_angle);
      const T weight = upstream[n];
      T gradient[4];
      coordinate_gradient<T, T>(first[n][0], first[n][1], first[n][2], first[n][3],
                                iou_gradient<kind>(a, b, weight), with_angle, gradient);
      std::copy_n(gradient, 4, result1 + 4 * n);
      coordinate_gradient<T, T>(second[n][0], second[n][1], second[n][2], second[n][3],
                                iou_gradient<kind>(b, a, weight), with_angle, gradient);
      std::copy_n(gradient, 4, result2 + 4 * n);
    }
  });
}

at::Tensor elementwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2,
                           std::string_view kind) {
  check_elementwise_boxes(boxes1, boxes2);
  const IouKind selected = iou_kind(kind);
  at::Tensor output = at::empty({boxes1.size(0)}, boxes1.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou", [&] {
        with_kind(selected, [&](auto constant) {
          forward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>(boxes1, boxes2,
                                                                              output);
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
  const IouKind selected = iou_kind(kind);
  at::Tensor output1 = at::empty(boxes1.sizes(), boxes1.options());
  at::Tensor output2 = at::empty(boxes2.sizes(), boxes2.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "elementwise_iou_backward", [&] {
        with_kind(selected, [&](auto constant) {
          backward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>(grad, boxes1, boxes2,
                                                                               output1, output2);
        });
      });
  return {output1, output2};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  m.def("elementwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
  m.def(
      "elementwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) {
  m.impl("elementwise_iou", &elementwise_iou);
  m.impl("elementwise_iou_backward", &elementwise_iou_backward);
}

}  // namespace corrdet
