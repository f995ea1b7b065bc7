#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common/simd.h"
#include "iou/iou_checks.h"
#include "pairwise_iou/pairwise_iou.h"

namespace corrdet {
namespace {

// Pairs per task, below which another thread costs more than it saves.
constexpr int64_t kGrain = 16384;
// Sides of the tile of pairs that the backward pass holds in its fastest cache.
constexpr int64_t kTile = 64;

// (N, 4) of any strides and dtype -> (kBoxFields, N) in the dtype of the arithmetic.
template <typename scalar_t, typename T>
at::Tensor prepare_boxes(const at::Tensor& boxes, bool with_angle) {
  const int64_t count = boxes.size(0);
  at::Tensor prepared =
      at::empty({kBoxFields, count}, boxes.options().dtype(c10::CppTypeToScalarType<T>::value));
  const auto input = boxes.accessor<scalar_t, 2>();
  T* const output = prepared.data_ptr<T>();
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Box<T> box =
          make_box<T>(input[n][0], input[n][1], input[n][2], input[n][3], with_angle);
      const T fields[kBoxFields] = {box.x1, box.y1, box.x2, box.y2, box.area, box.angle};
      for (int64_t field = 0; field < kBoxFields; ++field) {
        output[field * count + n] = fields[field];
      }
    }
  });
  return prepared;
}

// One box against `count` of the `stride` boxes prepared at `others`.
template <IouKind kind, typename T>
CORRDET_SIMD void iou_row(const Box<T> box, const T* __restrict__ others, int64_t stride,
                          int64_t count, T* __restrict__ output) {
  for (int64_t m = 0; m < count; ++m) {
    output[m] = iou<kind>(box, load_box(others, stride, m));
  }
}

template <typename scalar_t, typename T, IouKind kind>
void forward_kernel(const at::Tensor& boxes1, const at::Tensor& boxes2, at::Tensor& output) {
  const int64_t rows = boxes1.size(0);
  const int64_t columns = boxes2.size(0);
  constexpr bool with_angle = kind == IouKind::ciou;
  const at::Tensor prepared1 = prepare_boxes<scalar_t, T>(boxes1, with_angle);
  const at::Tensor prepared2 = prepare_boxes<scalar_t, T>(boxes2, with_angle);
  const T* const values1 = prepared1.data_ptr<T>();
  const T* const values2 = prepared2.data_ptr<T>();
  scalar_t* const result = output.data_ptr<scalar_t>();
  // Stretches of a row, so that their part of boxes2 stays in cache and few long rows still use all
  // threads. A pair is computed by the same instructions whatever thread gets it.
  constexpr int64_t kStretch = 1024;
  const int64_t stretches = (columns + kStretch - 1) / kStretch;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(columns, kStretch));
  at::parallel_for(0, rows * stretches, grain, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] T buffer[kStretch];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / stretches;
      const int64_t start = (item % stretches) * kStretch;
      const int64_t count = std::min(kStretch, columns - start);
      const Box<T> box = load_box(values1, rows, n);
      scalar_t* const row = result + n * columns + start;
      if constexpr (std::is_same_v<scalar_t, T>) {
        iou_row<kind, T>(box, values2 + start, columns, count, row);
      } else {
        iou_row<kind, T>(box, values2 + start, columns, count, buffer);
        std::copy(buffer, buffer + count, row);
      }
    }
  });
}

// Adds to sums[field][k] the gradients of kTile own boxes from pairs with `count` others.
// upstream[r][k] belongs to the pair (own k, other r).
template <IouKind kind, typename T>
CORRDET_SIMD void gradient_tile(const T* __restrict__ own, const T* __restrict__ others,
                                int64_t others_stride, int64_t count,
                                const T* __restrict__ upstream, T* __restrict__ sums) {
  for (int64_t r = 0; r < count; ++r) {
    const Box<T> other = load_box(others, others_stride, r);
    for (int64_t k = 0; k < kTile; ++k) {
      const BoxGradient<T> gradient =
          iou_gradient<kind>(load_box(own, kTile, k), other, upstream[r * kTile + k]);
      sums[k] += gradient.x1;
      sums[kTile + k] += gradient.y1;
      sums[2 * kTile + k] += gradient.x2;
      sums[3 * kTile + k] += gradient.y2;
      if constexpr (kind == IouKind::ciou) {
        sums[4 * kTile + k] += gradient.angle;
      }
    }
  }
}

// upstream[r][k] of a tile from a gradient of any strides, along its rows or columns.
template <typename scalar_t, typename T>
void load_upstream(const scalar_t* source, int64_t own_step, int64_t other_step, int64_t own_count,
                   int64_t other_count, T* upstream) {
  if (own_step == 1) {
    for (int64_t r = 0; r < other_count; ++r) {
      std::copy_n(source + r * other_step, own_count, upstream + r * kTile);
    }
    return;
  }
  for (int64_t k = 0; k < own_count; ++k) {
    for (int64_t r = 0; r < other_count; ++r) {
      upstream[r * kTile + k] = source[k * own_step + r * other_step];
    }
  }
}

template <typename scalar_t, typename T, IouKind kind>
void backward_kernel(const at::Tensor& grad, const at::Tensor& boxes1, const at::Tensor& boxes2,
                     at::Tensor& output) {
  const int64_t own_count = boxes1.size(0);
  const int64_t other_count = boxes2.size(0);
  constexpr bool with_angle = kind == IouKind::ciou;
  const at::Tensor prepared1 = prepare_boxes<scalar_t, T>(boxes1, with_angle);
  const at::Tensor prepared2 = prepare_boxes<scalar_t, T>(boxes2, with_angle);
  const T* const values1 = prepared1.data_ptr<T>();
  const T* const values2 = prepared2.data_ptr<T>();
  const scalar_t* const upstream = grad.const_data_ptr<scalar_t>();
  const int64_t own_step = grad.stride(0);
  const int64_t other_step = grad.stride(1);

  const int64_t tiles = (own_count + kTile - 1) / kTile;
  const int64_t chunks = (other_count + kReductionChunk - 1) / kReductionChunk;
  std::vector<double> partial(chunks * kBoxGradientFields * own_count);
  const int64_t grain =
      std::max<int64_t>(1, kGrain / (kTile * std::min(other_count, kReductionChunk)));
  at::parallel_for(0, tiles * chunks, grain, [&](int64_t begin, int64_t end) {
    // The last tile is filled up with boxes of no size and gradients of 0.
    T own[kBoxFields * kTile];
    T upstream_tile[kTile * kTile];
    T sums[kBoxGradientFields * kTile];
    double totals[kBoxGradientFields * kTile];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = (item / chunks) * kTile;
      const int64_t chunk = item % chunks;
      const int64_t own_in_tile = std::min(kTile, own_count - first);
      std::fill(std::begin(own), std::end(own), T(0));
      for (int64_t field = 0; field < kBoxFields; ++field) {
        std::copy_n(values1 + field * own_count + first, own_in_tile, own + field * kTile);
      }
      std::fill(std::begin(totals), std::end(totals), 0.0);
      std::fill(std::begin(upstream_tile), std::end(upstream_tile), T(0));
      const int64_t chunk_end = std::min(other_count, (chunk + 1) * kReductionChunk);
      for (int64_t start = chunk * kReductionChunk; start < chunk_end; start += kTile) {
        const int64_t count = std::min(kTile, chunk_end - start);
        load_upstream(upstream + first * own_step + start * other_step, own_step, other_step,
                      own_in_tile, count, upstream_tile);
        // A short sum in the type of the boxes, a long one in double.
        std::fill(std::begin(sums), std::end(sums), T(0));
        gradient_tile<kind, T>(own, values2 + start, other_count, count, upstream_tile, sums);
        for (int64_t i = 0; i < kBoxGradientFields * kTile; ++i) {
          totals[i] += sums[i];
        }
      }
      for (int64_t field = 0; field < kBoxGradientFields; ++field) {
        std::copy_n(totals + field * kTile, own_in_tile,
                    partial.data() + (chunk * kBoxGradientFields + field) * own_count + first);
      }
    }
  });

  const auto boxes = boxes1.accessor<scalar_t, 2>();
  scalar_t* const result = output.data_ptr<scalar_t>();
  at::parallel_for(0, own_count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double sums[kBoxGradientFields] = {};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t field = 0; field < kBoxGradientFields; ++field) {
          sums[field] += partial[(chunk * kBoxGradientFields + field) * own_count + k];
        }
      }
      double gradient[4];
      coordinate_gradient<T, double>(boxes[k][0], boxes[k][1], boxes[k][2], boxes[k][3],
                                     {sums[0], sums[1], sums[2], sums[3], sums[4]}, with_angle,
                                     gradient);
      std::copy_n(gradient, 4, result + 4 * k);
    }
  });
}

at::Tensor pairwise_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  at::Tensor output = at::empty({boxes1.size(0), boxes2.size(0)}, boxes1.options());
  const IouKind selected = iou_kind(kind);
  if (output.numel() == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou", [&] {
        with_kind(selected, [&](auto constant) {
          forward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>(boxes1, boxes2,
                                                                              output);
        });
      });
  return output;
}

at::Tensor pairwise_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1,
                                 const at::Tensor& boxes2, std::string_view kind) {
  check_boxes(boxes1, boxes2);
  check_pairwise_grad(grad, boxes1, boxes2);
  const IouKind selected = iou_kind(kind);
  at::Tensor output = at::zeros(boxes1.sizes(), boxes1.options());
  if (grad.numel() == 0) return output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, boxes1.scalar_type(), "pairwise_iou_backward", [&] {
        with_kind(selected, [&](auto constant) {
          backward_kernel<scalar_t, at::opmath_type<scalar_t>, constant.value>(grad, boxes1, boxes2,
                                                                               output);
        });
      });
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  m.def("pairwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
  // With respect to boxes1. Every kind is symmetric: boxes2's is that of (grad^T, boxes2, boxes1).
  m.def("pairwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) {
  m.impl("pairwise_iou", &pairwise_iou);
  m.impl("pairwise_iou_backward", &pairwise_iou_backward);
}

}  // namespace corrdet
