// Device code of the sorting errors of Rank & Sort Loss (Oksuz et al. 2021), which are between
// positives alone; sorting_errors.cpp has the same for a CPU.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"
#include "pairwise_error/samples_kernel.cuh"
#include "step_error/step_passes_kernel.cuh"

namespace corrdet {

// The sorting error of positive u, a block per positive over all others: errors (P,) and
// missorted (P,), the sum of H over those of lower IoU, in sorted order.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads, 1)
    sorting_errors_kernel(DevicePositives<T> positives, Pointer<const int32_t> all_ordinals,
                          Pointer<const double> ious, Pointer<double> errors,
                          Pointer<double> missorted, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  if (int32_t(info[kFaults]) != 0) return;
  const SortedScores<T> scores = positives.sorted(info);
  const double delta = positives.delta;
  const auto ordinals = all_ordinals + sorted_buffer(count) * positives.capacity;
  for (int64_t u = blockIdx.x; u < count; u += gridDim.x) {
    const double iou = ious[int32_t(ordinals[u])];
    double at_least = 0.0, at_least_loss = 0.0, lower = 0.0, lower_loss = 0.0;
    for (int64_t k = scores.template number_below<true>(0.0, scores[u] - delta) + threadIdx.x;
         k < count; k += kSampleThreads) {
      double step = (scores[k] - scores[u]) / (2.0 * delta) + 0.5;
      step = step < 0.0 ? 0.0 : step > 1.0 ? 1.0 : step;
      const double other = ious[int32_t(ordinals[k])];
      if (other < iou) {
        lower += step;
        lower_loss += step * (1.0 - other);
      } else {
        at_least += step;
        at_least_loss += step * (1.0 - other);
      }
    }
    at_least = block_reduce(at_least, shared, Add());
    at_least_loss = block_reduce(at_least_loss, shared, Add());
    lower = block_reduce(lower, shared, Add());
    lower_loss = block_reduce(lower_loss, shared, Add());
    if (threadIdx.x == 0) {
      // Current error minus target error, without the difference of two near numbers.
      errors[u] = (lower_loss * at_least - at_least_loss * lower) / (at_least * (at_least + lower));
      missorted[u] = lower;
    }
  }
}

// What positive v gets back of the sorting errors, and in block 0 their mean.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads, 1)
    sorting_gradient_kernel(DevicePositives<T> positives, Pointer<const int32_t> all_ordinals,
                            Pointer<const int32_t> indices, Pointer<const double> ious,
                            Pointer<const double> errors, Pointer<const double> missorted,
                            Pointer<T> gradient, Pointer<T> values, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  if (int32_t(info[kFaults]) != 0 || count == 0) return;
  const SortedScores<T> scores = positives.sorted(info);
  const double delta = positives.delta;
  const auto ordinals = all_ordinals + sorted_buffer(count) * positives.capacity;
  const double scale_down = 1.0 / static_cast<double>(count);
  for (int64_t v = blockIdx.x; v < count; v += gridDim.x) {
    const double iou = ious[int32_t(ordinals[v])];
    const int64_t end = scores.template number_below<false>(0.0, scores[v] + delta);
    double sum = 0.0;
    for (int64_t u = threadIdx.x; u < end; u += kSampleThreads) {
      if (!(double(ious[int32_t(ordinals[u])]) > iou) || !(double(missorted[u]) > 0.0)) continue;
      double step = (scores[v] - scores[u]) / (2.0 * delta) + 0.5;
      step = step > 1.0 ? 1.0 : step;
      sum += double(errors[u]) / double(missorted[u]) * step;
    }
    sum = block_reduce(sum, shared, Add());
    if (threadIdx.x == 0) {
      const double own = double(missorted[v]) > 0.0 ? double(errors[v]) : 0.0;
      gradient[int32_t(indices[int32_t(ordinals[v])])] = static_cast<T>((sum - own) * scale_down);
    }
  }
  if (blockIdx.x == 0) {
    double sum = 0.0;
    for (int64_t u = threadIdx.x; u < count; u += kSampleThreads) sum += double(errors[u]);
    sum = block_reduce(sum, shared, Add());
    if (threadIdx.x == 0) values[1] = static_cast<T>(sum * scale_down);
  }
}

}  // namespace corrdet
