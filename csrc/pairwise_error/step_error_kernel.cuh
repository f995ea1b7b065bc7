// Device code of the losses on the step H. See pairwise_error.h for the idea, step_error_cpu.cpp
// for the same on a CPU. Stretch j holds the logits that have j knots s_u - delta, s_u + delta
// below them.
//
// Sums over samples are integers, in units of 2 delta / scale, so that they do not depend on the
// order in which threads add. `scale` leaves room for all samples.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"
#include "pairwise_error/samples_kernel.cuh"

namespace corrdet {

constexpr int kSolveThreads = 512;

// As in pairwise_error.h, which device code does without.
enum DeviceStepLoss { kDeviceAp, kDeviceStep, kDeviceStepNegatives, kDeviceRankSort, kDeviceAlrp };

// The number of positives, among the knots below stretch j, whose lower knot is there; those with
// their upper knot there are the rest. Equal knots: lower ones first.
template <typename T>
__device__ int64_t opened_below(SortedScores<T> scores, double delta, int64_t j) {
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
__device__ double knot_below(SortedScores<T> scores, double delta, int64_t j) {
  const int64_t opened = opened_below(scores, delta, j), closed = j - opened;
  const double low = opened > 0 ? scores[opened - 1] - delta : 0.0;
  const double high = closed > 0 ? scores[closed - 1] + delta : 0.0;
  if (opened == 0) return high;
  return closed == 0 || low > high ? low : high;
}

// counts, sums: (2 P + 1,) of the negatives, zeroed before.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    stretches_kernel(Pointer<const T> logits, Pointer<const int8_t> kinds, int64_t count,
                     Pointer<const T> all_scores, int64_t capacity, double delta, double scale,
                     Pointer<int32_t> counts, Pointer<unsigned long long> sums,
                     Pointer<const int32_t> info) {
  const int64_t positives = info[kPositives];
  if (positives == 0 || int32_t(info[kFaults]) != 0) return;
  const SortedScores<T> scores = {all_scores + sorted_buffer(positives) * capacity, positives};
  const double low = scores[0] - delta;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    if (kinds[i] != kDeviceNegative) continue;
    const double x = static_cast<double>(T(logits[i]));
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

// One block. values: (2,). false_positives, shares: (P,) in sorted order, shares divided by P.
// counts and sums as stretches_kernel left them, overwritten. table: (2 P + 2,), for alrp
// (4 P + 4,); at the end the prefix sums that step_gradient_kernel reads. graded and
// localization_gradient: (localizations,), for alrp.
template <typename T>
__global__ void __launch_bounds__(kSolveThreads, 1)
    step_solve_kernel(Pointer<const T> all_scores, Pointer<const int32_t> all_ordinals,
                      int64_t capacity, int loss, double delta, double scale,
                      Pointer<const double> graded, Pointer<int32_t> counts,
                      Pointer<const unsigned long long> sums, Pointer<double> false_positives,
                      Pointer<double> shares, Pointer<double> table, Pointer<T> values,
                      Pointer<T> localization_gradient, int64_t localizations,
                      Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  const int64_t thread = threadIdx.x, threads = blockDim.x;
  if (count == 0 || int32_t(info[kFaults]) != 0) {
    const T value = int32_t(info[kFaults]) != 0 ? static_cast<T>(nan("")) : T(0);
    if (thread < 2) values[thread] = value;
    if (loss == kDeviceAlrp) {
      for (int64_t k = thread; k < localizations; k += threads) localization_gradient[k] = value;
    }
    return;
  }
  const int64_t buffer = sorted_buffer(count) * capacity;
  const SortedScores<T> scores = {all_scores + buffer, count};
  const auto ordinals = all_ordinals + buffer;
  const int64_t stretches = 2 * count + 1;
  const double width = 2.0 * delta;
  const double top = scores[count - 1] + delta;

  // From the top down: how many negatives are in a stretch or above, and the sum of their
  // distances from the highest knot.
  block_scan(
      stretches - 1, shared, Add(),
      [&](int64_t i) {
        const int64_t j = stretches - 1 - i;
        const double n = static_cast<double>(int32_t(counts[j]));
        if (n == 0.0) return 0.0;
        const double inside = static_cast<double>((unsigned long long)(sums[j])) / scale * width;
        return inside + n * (knot_below(scores, delta, j) - top);
      },
      [&](int64_t i, double sum) { table[stretches - 1 - i] = sum; });
  block_scan(
      stretches - 1, shared, Add(),
      [&](int64_t i) { return static_cast<double>(int32_t(counts[stretches - 1 - i])); },
      [&](int64_t i, double sum) { counts[stretches - 1 - i] = static_cast<int32_t>(sum); });

  // Sum of the distances of the negatives above `start` from there: H is a difference of two.
  const auto ramp = [&](int64_t j, double start) {
    if (j >= stretches) return 0.0;
    return double(table[j]) - static_cast<double>(int32_t(counts[j])) * (start - top);
  };
  for (int64_t u = thread; u < count; u += threads) {
    const double low = scores[u] - delta, high = scores[u] + delta;
    const int64_t inside = scores.template number_below<true>(-delta, low) +
                           scores.template number_below<true>(delta, low);
    const int64_t above = scores.template number_below<true>(-delta, high) +
                          scores.template number_below<true>(delta, high);
    const double difference = ramp(inside, low) - ramp(above, high);
    const bool any = inside < stretches && int32_t(counts[inside]) > 0;
    false_positives[u] = any && difference > 0.0 ? difference / width : 0.0;
    shares[u] = any ? 1.0 / static_cast<double>(int32_t(counts[inside])) : 0.0;
  }
  __syncthreads();

  // Sums over positives above, from prefix sums in order of score.
  const double origin = scores[0];
  const auto prefix = [&](int64_t offset, auto term) {
    if (thread == 0) table[offset] = 0.0;
    block_scan(count, shared, Add(), term,
               [&](int64_t i, double sum) { table[offset + i + 1] = sum; });
  };
  const auto step_sum = [&](int64_t u, int64_t weights, int64_t distances) {
    const int64_t begin = scores.template number_below<true>(0.0, scores[u] - delta);
    const int64_t end = scores.template number_below<true>(0.0, scores[u] + delta);
    const auto weight_before = [&](int64_t k) {
      return weights < 0 ? static_cast<double>(k) : double(table[weights + k]);
    };
    const double inside = weight_before(end) - weight_before(begin);
    const double distance = double(table[distances + end]) - double(table[distances + begin]) -
                            inside * (scores[u] - origin);
    return weight_before(count) - weight_before(end) + 0.5 * inside + distance / width;
  };
  prefix(0, [&](int64_t k) { return scores[k] - origin; });
  const double itself = loss == kDeviceRankSort ? 0.5 : 1.0;
  // table[count + 1 ...] holds the ranks from here on.
  const int64_t ranks = count + 1;
  for (int64_t u = thread; u < count; u += threads) {
    table[ranks + u] = step_sum(u, -1, 0) - 0.5 + itself + double(false_positives[u]);
  }
  __syncthreads();

  const double scale_down = 1.0 / static_cast<double>(count);
  double value = 0.0, second = 0.0;
  if (loss == kDeviceAp) {
    block_scan(
        count, shared, Maximum(),
        [&](int64_t u) { return 1.0 - double(false_positives[u]) / double(table[ranks + u]); },
        [&](int64_t u, double largest) {
          const double precision = 1.0 - double(false_positives[u]) / double(table[ranks + u]);
          double share = 1.0 / double(table[ranks + u]);
          if (precision < largest) share *= (1.0 - largest) / (1.0 - precision);
          shares[u] = share;
          value += 1.0 - largest;
        });
  } else if (loss == kDeviceAlrp) {
    const int64_t losses = 2 * count + 2, weighted = 3 * count + 3;
    const auto error = [&](int64_t k) { return double(graded[int32_t(ordinals[k])]); };
    prefix(losses, error);
    prefix(weighted, [&](int64_t k) { return error(k) * (scores[k] - origin); });
    for (int64_t u = thread; u < count; u += threads) {
      const double rank = table[ranks + u], wrong = false_positives[u];
      const double others = step_sum(u, losses, weighted) - 0.5 * error(u);
      shares[u] = wrong > 0.0 ? (wrong + others) / (rank * wrong) : 0.0;
      value += wrong / rank;
      // Equal scores count each other.
      const int64_t begin = scores.template number_below<false>(0.0, scores[u]);
      second += (double(table[losses + count]) - double(table[losses + begin])) / rank;
    }
    __syncthreads();
    prefix(losses, [&](int64_t u) { return scale_down / double(table[ranks + u]); });
    for (int64_t k = thread; k < count; k += threads) {
      const int64_t end = scores.template number_below<true>(0.0, scores[k]);
      localization_gradient[int32_t(ordinals[k])] = static_cast<T>(double(table[losses + end]));
    }
  } else {
    for (int64_t u = thread; u < count; u += threads) {
      if (loss != kDeviceStepNegatives) shares[u] = 1.0 / double(table[ranks + u]);
      value += double(false_positives[u]) * double(shares[u]);
    }
  }
  value = block_reduce(value, shared, Add());
  second = block_reduce(second, shared, Add());
  if (thread == 0) {
    values[0] = static_cast<T>(value * scale_down);
    if (loss != kDeviceRankSort) values[1] = static_cast<T>(second * scale_down);
  }
  for (int64_t u = thread; u < count; u += threads) shares[u] = double(shares[u]) * scale_down;
  __syncthreads();
  prefix(0, [&](int64_t u) { return double(shares[u]); });
  prefix(ranks, [&](int64_t u) { return double(shares[u]) * (scores[u] - origin); });
}

// gradient: (S,) of the first part; zero at the positives where `second` is given, (S,) too.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    step_gradient_kernel(Pointer<const T> logits, Pointer<const int8_t> kinds, int64_t count,
                         Pointer<const T> all_scores, int64_t capacity, double delta,
                         Pointer<const double> table, Pointer<T> gradients, int rows,
                         Pointer<const int32_t> info) {
  const int64_t positives = info[kPositives];
  const bool undefined = int32_t(info[kFaults]) != 0;
  const SortedScores<T> scores = {all_scores + sorted_buffer(positives) * capacity, positives};
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    T gradient = undefined ? static_cast<T>(nan("")) : T(0);
    if (rows == 2) gradients[count + i] = gradient;
    if (!undefined && positives > 0 && kinds[i] == kDeviceNegative) {
      const double x = static_cast<double>(T(logits[i]));
      const int64_t opened = scores.template number_below<false>(-delta, x);
      if (opened > 0) {
        const int64_t closed = scores.template number_below<false>(delta, x);
        double sum = table[closed];
        if (opened > closed) {
          // Of those between, shares and shares times score.
          const double inside = double(table[opened]) - double(table[closed]);
          const int64_t weighted = positives + 1;
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
    step_positives_kernel(Pointer<const int32_t> all_ordinals, Pointer<const int32_t> places,
                          int64_t capacity, Pointer<const double> false_positives,
                          Pointer<const double> shares, Pointer<T> gradients,
                          Pointer<const int32_t> info) {
  const int64_t positives = info[kPositives];
  if (int32_t(info[kFaults]) != 0) return;
  const auto ordinals = all_ordinals + sorted_buffer(positives) * capacity;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; u < positives;
       u += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    gradients[int32_t(places[int32_t(ordinals[u])])] =
        static_cast<T>(-double(shares[u]) * double(false_positives[u]));
  }
}

// The sorting error of positive u of RS loss, a block per positive over all others: errors (P,) and
// missorted (P,), the sum of H over those of lower IoU, in sorted order.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads, 1)
    sorting_errors_kernel(Pointer<const T> all_scores, Pointer<const int32_t> all_ordinals,
                          int64_t capacity, double delta, Pointer<const double> ious,
                          Pointer<double> errors, Pointer<double> missorted,
                          Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  if (int32_t(info[kFaults]) != 0) return;
  const int64_t buffer = sorted_buffer(count) * capacity;
  const SortedScores<T> scores = {all_scores + buffer, count};
  const auto ordinals = all_ordinals + buffer;
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
    sorting_gradient_kernel(Pointer<const T> all_scores, Pointer<const int32_t> all_ordinals,
                            Pointer<const int32_t> places, int64_t capacity, double delta,
                            Pointer<const double> ious, Pointer<const double> errors,
                            Pointer<const double> missorted, Pointer<T> gradient, Pointer<T> values,
                            Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  if (int32_t(info[kFaults]) != 0 || count == 0) return;
  const int64_t buffer = sorted_buffer(count) * capacity;
  const SortedScores<T> scores = {all_scores + buffer, count};
  const auto ordinals = all_ordinals + buffer;
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
      gradient[int32_t(places[int32_t(ordinals[v])])] = static_cast<T>((sum - own) * scale_down);
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
