// Device code of pairwise_iou. It compiles under nvcc and under tests/ops/emulation, which includes
// its own definitions of the CUDA words first. scalar_t is the dtype of the tensors, T that of the
// arithmetic.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "iou/iou.h"
#include "pairwise_iou/pairwise_iou.h"

namespace corrdet {

constexpr int kPairwiseThreads = 256;
// Pairs of one block of the forward kernel.
constexpr int64_t kForwardTile = 1024;
// The backward kernel's block: kOwnTile boxes by kSlices threads each, over kOtherTile other boxes
// at a time.
constexpr int kOwnTile = 32;
constexpr int kSlices = kPairwiseThreads / kOwnTile;
constexpr int kOtherTile = 64;
// One more than kOwnTile, so that writes down a column fall into different banks.
constexpr int kUpstreamPitch = kOwnTile + 1;
// Values of T in shared memory: the other boxes, their upstream gradients, the slices' sums.
constexpr int kPairwiseBackwardShared =
    kBoxFields * kOtherTile + kOtherTile * kUpstreamPitch + kBoxGradientFields * kPairwiseThreads;

// (count, 4) with any strides -> (kBoxFields, count).
template <typename scalar_t, typename T>
__global__ void prepare_boxes_kernel(Pointer<const scalar_t> boxes, int64_t count, int64_t box_step,
                                     int64_t field_step, bool with_angle, Pointer<T> prepared) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; n < count;
       n += step) {
    const auto source = boxes + n * box_step;
    const Box<T> box = make_box<T>(static_cast<T>(source[0]), static_cast<T>(source[field_step]),
                                   static_cast<T>(source[2 * field_step]),
                                   static_cast<T>(source[3 * field_step]), with_angle);
    prepared[n] = box.x1;
    prepared[count + n] = box.y1;
    prepared[2 * count + n] = box.x2;
    prepared[3 * count + n] = box.y2;
    prepared[4 * count + n] = box.area;
    prepared[5 * count + n] = box.angle;
  }
}

// The matrix is written as one long row, in whole cache lines whatever the number of columns.
template <typename scalar_t, typename T, IouKind kind>
__global__ void __launch_bounds__(kPairwiseThreads)
    pairwise_iou_forward_kernel(Pointer<const T> boxes1, int64_t rows, Pointer<const T> boxes2,
                                int64_t columns, Pointer<scalar_t> output) {
  const int64_t total = rows * columns;
  for (int64_t start = blockIdx.x * kForwardTile; start < total;
       start += gridDim.x * kForwardTile) {
    const int64_t first_row = start / columns;
    const int64_t first_column = start - first_row * columns;
    for (int64_t i = threadIdx.x; i < kForwardTile && start + i < total; i += blockDim.x) {
      const int64_t offset = first_column + i;
      // A 64-bit division takes longer than the IoU, and offset < columns + kForwardTile.
      const int64_t down = columns < (int64_t(1) << 31)
                               ? static_cast<uint32_t>(offset) / static_cast<uint32_t>(columns)
                               : offset / columns;
      output[start + i] =
          static_cast<scalar_t>(iou<kind>(load_box(boxes1, rows, first_row + down),
                                          load_box(boxes2, columns, offset - down * columns)));
    }
  }
}

template <typename T>
CORRDET_INLINE void add(BoxGradient<T>& sum, const BoxGradient<T>& gradient) {
  sum.x1 += gradient.x1;
  sum.y1 += gradient.y1;
  sum.x2 += gradient.x2;
  sum.y2 += gradient.y2;
  sum.angle += gradient.angle;
}

// partial (chunks, kBoxGradientFields, own_count): sums over kReductionChunk other boxes each.
template <typename scalar_t, typename T, IouKind kind>
__global__ void __launch_bounds__(kPairwiseThreads)
    pairwise_iou_backward_kernel(Pointer<const scalar_t> upstream, int64_t own_step,
                                 int64_t other_step, Pointer<const T> own_boxes, int64_t own_count,
                                 Pointer<const T> other_boxes, int64_t other_count,
                                 Pointer<double> partial) {
  CORRDET_SHARED(T, shared);
  const auto others = shared;
  const auto weights = others + kBoxFields * kOtherTile;
  const auto slice_sums = weights + kOtherTile * kUpstreamPitch;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kOwnTile;
  const int slice = thread / kOwnTile;

  const int64_t tiles = (own_count + kOwnTile - 1) / kOwnTile;
  const int64_t chunks = (other_count + kReductionChunk - 1) / kReductionChunk;
  for (int64_t item = blockIdx.x; item < tiles * chunks; item += gridDim.x) {
    const int64_t chunk = item / tiles;
    const int64_t first = (item - chunk * tiles) * kOwnTile;
    // Threads past the last box repeat it with weight 0, and write nothing.
    const int64_t own_index = first + lane < own_count ? first + lane : own_count - 1;
    const Box<T> own = load_box(own_boxes, own_count, own_index);
    double totals[kBoxGradientFields] = {};

    const int64_t chunk_begin = chunk * kReductionChunk;
    const int64_t chunk_end =
        chunk_begin + kReductionChunk < other_count ? chunk_begin + kReductionChunk : other_count;
    for (int64_t start = chunk_begin; start < chunk_end; start += kOtherTile) {
      if (start > chunk_begin) __syncthreads();  // before this tile overwrites the one in use
      const int count =
          static_cast<int>(chunk_end - start < kOtherTile ? chunk_end - start : kOtherTile);
      for (int i = thread; i < kBoxFields * kOtherTile; i += kPairwiseThreads) {
        const int field = i / kOtherTile;
        const int r = i % kOtherTile;
        if (r < count) {
          others[i] = other_boxes[field * other_count + start + r];
        }
      }
      // Neighbouring threads read neighbouring values, whichever way the gradient lies in memory.
      const bool own_is_dense = own_step <= other_step;
      for (int i = thread; i < kOwnTile * kOtherTile; i += kPairwiseThreads) {
        const int k = own_is_dense ? i % kOwnTile : i / kOtherTile;
        const int r = own_is_dense ? i / kOwnTile : i % kOtherTile;
        T weight = T(0);
        if (first + k < own_count && r < count) {
          weight = static_cast<T>(upstream[(first + k) * own_step + (start + r) * other_step]);
        }
        weights[r * kUpstreamPitch + k] = weight;
      }
      __syncthreads();
      // A short sum in the type of the boxes, a long one in double.
      BoxGradient<T> sum = {};
      for (int r = slice; r < count; r += kSlices) {
        const BoxGradient<T> gradient = iou_gradient<kind>(own, load_box(others, kOtherTile, r),
                                                           T(weights[r * kUpstreamPitch + lane]));
        add(sum, gradient);
      }
      totals[0] += sum.x1;
      totals[1] += sum.y1;
      totals[2] += sum.x2;
      totals[3] += sum.y2;
      totals[4] += sum.angle;
    }

    for (int field = 0; field < kBoxGradientFields; ++field) {
      slice_sums[field * kPairwiseThreads + thread] = static_cast<T>(totals[field]);
    }
    __syncthreads();
    if (thread < kBoxGradientFields * kOwnTile && first + lane < own_count) {
      const int field = slice;  // thread / kOwnTile
      double sum = 0.0;
      for (int s = 0; s < kSlices; ++s) {
        sum += slice_sums[field * kPairwiseThreads + s * kOwnTile + lane];
      }
      partial[(chunk * kBoxGradientFields + field) * own_count + first + lane] = sum;
    }
    // The next item overwrites the last tile after the barrier above, and these sums after another.
  }
}

// Adds up the chunks in order and returns to coordinates: output (count, 4).
template <typename scalar_t, typename T>
__global__ void finish_gradient_kernel(Pointer<const double> partial, int64_t chunks,
                                       Pointer<const scalar_t> boxes, int64_t count,
                                       int64_t box_step, int64_t field_step, bool with_angle,
                                       Pointer<scalar_t> output) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < count;
       k += step) {
    double sums[kBoxGradientFields] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int field = 0; field < kBoxGradientFields; ++field) {
        sums[field] += partial[(chunk * kBoxGradientFields + field) * count + k];
      }
    }
    const auto source = boxes + k * box_step;
    double gradient[4];
    coordinate_gradient<T, double>(
        static_cast<T>(source[0]), static_cast<T>(source[field_step]),
        static_cast<T>(source[2 * field_step]), static_cast<T>(source[3 * field_step]),
        {sums[0], sums[1], sums[2], sums[3], sums[4]}, with_angle, gradient);
    for (int field = 0; field < 4; ++field) {
      output[4 * k + field] = static_cast<scalar_t>(gradient[field]);
    }
  }
}

}  // namespace corrdet
