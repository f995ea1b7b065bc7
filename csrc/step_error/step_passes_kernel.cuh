// Device code of the two passes over the samples of the losses on the step H. See pairwise_error.h
// for the idea, step_sums.h for the same on a CPU; between the passes step_solve_kernel.cuh.
// Stretch j holds the logits that have j knots s_u - delta, s_u + delta below them.
//
// Sums over samples are integers, in units of 2 delta / scale, so that they do not depend on the
// order in which threads add. `scale` leaves room for all samples.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"
#include "pairwise_error/samples_kernel.cuh"
#include "step_error/near_position.h"

namespace corrdet {

// What step_error's kernels know of the positives, in sorted order: positions (P,) where
// info[kFar].
template <typename T>
struct DevicePositives {
  Pointer<const T> scores;  // two buffers of `capacity`, see sorted_buffer
  Pointer<const double> positions;
  int64_t capacity;
  double delta;

  __device__ SortedScores<T> sorted(Pointer<const int32_t> info) const {
    const int64_t count = info[kPositives];
    return {scores + sorted_buffer(count) * capacity, count, positions, int32_t(info[kFar]) != 0};
  }
};

// A logit, or the position that takes its place.
template <typename T>
__device__ double position_of(const SortedScores<T>& scores, T logit, double delta) {
  const double value = static_cast<double>(logit);
  if (!scores.far) return value;
  const auto given = scores.given();
  const int64_t number = given.template number_below<true>(0.0, value);
  return near_position(given, scores.positions, scores.count, number, value, delta);
}

// One block. positions: (P,), see near_position.h.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    near_scores_kernel(Pointer<const T> all_scores, int64_t capacity, double delta,
                       Pointer<double> positions, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  if (count == 0 || int32_t(info[kFaults]) != 0 || int32_t(info[kFar]) == 0) return;
  const SortedScores<T> scores = {all_scores + sorted_buffer(count) * capacity, count};
  block_scan(
      count, shared, Add(),
      [&](int64_t u) { return u == 0 ? 0.0 : near_gap(scores[u] - scores[u - 1], delta); },
      [&](int64_t u, double sum) { positions[u] = sum; });
}

// The number of positives, among the knots below stretch j, whose lower knot is there; those with
// their upper knot there are the rest. Equal knots: lower ones first.
template <typename T>
__device__ int64_t opened_below(const SortedScores<T>& scores, double delta, int64_t j) {
  int64_t begin = j > scores.count ? j - scores.count : 0;
  int64_t end = j < scores.count ? j : scores.count;
  while (begin < end) {
    const int64_t opened = begin + (end - begin) / 2;
    // One more is opened if its knot is at most the last upper knot taken otherwise.
    if (scores[opened] - delta <= scores[j - opened - 1] + delta) {
      begin = opened + 1;
    } else {
      end = opened;
    }
  }
  return begin;
}

template <typename T>
__device__ double knot_below(const SortedScores<T>& scores, double delta, int64_t j) {
  const int64_t opened = opened_below(scores, delta, j), closed = j - opened;
  const double low = opened > 0 ? scores[opened - 1] - delta : 0.0;
  const double high = closed > 0 ? scores[closed - 1] + delta : 0.0;
  if (opened == 0) return high;
  return closed == 0 || low > high ? low : high;
}

// counts, sums: (2 P + 1,) of the negatives, zeroed before.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    stretches_kernel(Pointer<const T> logits, Pointer<const int8_t> labels, int64_t count,
                     DevicePositives<T> positives, double scale, Pointer<int32_t> counts,
                     Pointer<unsigned long long> sums, Pointer<const int32_t> info) {
  const SortedScores<T> scores = positives.sorted(info);
  if (scores.count == 0 || int32_t(info[kFaults]) != 0) return;
  const double delta = positives.delta;
  const double low = scores[0] - delta;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    if (labels[i] != kDeviceNegative) continue;
    const double x = position_of<T>(scores, logits[i], delta);
    if (!(x > low)) continue;
    const int64_t opened = scores.template number_below<false>(-delta, x);
    const int64_t closed = scores.template number_below<false>(delta, x);
    const int64_t j = opened + closed;
    CORRDET_ATOMIC_ADD(counts, j, 1);
    if (opened == closed) continue;  // in no window: the sum is not needed, and may be large
    const double below = scores[opened - 1] - delta;
    const double above = closed > 0 ? scores[closed - 1] + delta : below;
    const double distance = (x - (above > below ? above : below)) / (2.0 * delta);
    CORRDET_ATOMIC_ADD(sums, j, static_cast<unsigned long long>(distance * scale + 0.5));
  }
}

// gradient: (S,) of the first part; zero at the positives where `second` is given, (S,) too.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    step_gradient_kernel(Pointer<const T> logits, Pointer<const int8_t> labels, int64_t count,
                         DevicePositives<T> positives, Pointer<const double> table,
                         Pointer<T> gradients, int rows, Pointer<const int32_t> info) {
  const bool undefined = int32_t(info[kFaults]) != 0;
  const SortedScores<T> scores = positives.sorted(info);
  const double delta = positives.delta;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    T gradient = undefined ? static_cast<T>(nan("")) : T(0);
    if (rows == 2) gradients[count + i] = gradient;
    if (!undefined && scores.count > 0 && labels[i] == kDeviceNegative) {
      const double x = position_of<T>(scores, logits[i], delta);
      const int64_t opened = scores.template number_below<false>(-delta, x);
      if (opened > 0) {
        const int64_t closed = scores.template number_below<false>(delta, x);
        double sum = table[closed];
        if (opened > closed) {
          // Of those between, shares and shares times score.
          const double inside = double(table[opened]) - double(table[closed]);
          const int64_t weighted = scores.count + 1;
          const double moment = double(table[weighted + opened]) - double(table[weighted + closed]);
          sum += 0.5 * inside + (inside * (x - scores[0]) - moment) / (2.0 * delta);
        }
        gradient = static_cast<T>(sum > 0.0 ? sum : 0.0);
      }
    }
    gradients[i] = gradient;
  }
}

// After step_gradient_kernel: what the positives get back.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    step_positives_kernel(Pointer<const int32_t> all_ordinals, Pointer<const int32_t> indices,
                          int64_t capacity, Pointer<const double> false_positives,
                          Pointer<const double> shares, Pointer<T> gradients,
                          Pointer<const int32_t> info) {
  const int64_t positives = info[kPositives];
  if (int32_t(info[kFaults]) != 0) return;
  const auto ordinals = all_ordinals + sorted_buffer(positives) * capacity;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; u < positives;
       u += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    gradients[int32_t(indices[int32_t(ordinals[u])])] =
        static_cast<T>(-double(shares[u]) * double(false_positives[u]));
  }
}

}  // namespace corrdet
