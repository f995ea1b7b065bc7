// Device code of the losses on the sigmoid and the softplus. See pairwise_error.h for the idea,
// sums_pass.cpp and gradient_pass.cpp for the same on a CPU.
//
// Cells lie side by side from the lowest edge on; where that takes more than there is room for,
// logits are far from 0, or there are more positives than bins, pairs are summed one by one. Pairs
// of positives always are. Moments are integers in units of 1 / scale, so that they do not depend
// on the order in which threads add.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"
#include "pairwise_error/samples_kernel.cuh"
#include "smooth_error/sigmoid_series.h"
#include "smooth_error/smooth_loss.h"

namespace corrdet {

constexpr int kPairThreads = 128;
constexpr int kSmoothSolveThreads = 512;

CORRDET_INLINE double device_sigmoid(double y) { return 1.0 / (1.0 + exp(-y)); }

CORRDET_INLINE double device_softplus(double y) {
  return y > 0.0 ? y + log1p(exp(-y)) : log1p(exp(y));
}

// Positives in order of their logits, and the cells over them.
template <typename T>
struct Layout {
  SortedScores<T> scores;
  double lam, delta;
  int64_t most_cells, most_bins;

  CORRDET_INLINE double reach() const { return Series<T>::saturated / lam; }
  CORRDET_INLINE double width() const { return kCellWidth / lam; }
  CORRDET_INLINE double origin() const { return scores[0] - delta; }

  CORRDET_INLINE double position(double value) const {
    return (value - origin()) * (1.0 / width());
  }

  // Negative where there is no room for the cells, or the logits are far from 0.
  CORRDET_INLINE int64_t cell_count() const {
    if (is_far(scores[0], lam, delta) || is_far(scores[scores.count - 1], lam, delta)) return -1;
    const double cells = position(scores[scores.count - 1] + reach()) + 1.0;
    if (!(cells < static_cast<double>(most_cells))) return -1;
    const int64_t count = static_cast<int64_t>(cells);
    return count + scores.count < most_bins ? count : -1;
  }

  // Monotonic, also as rounded: what is in a higher cell is higher.
  CORRDET_INLINE int64_t cell(double value) const { return static_cast<int64_t>(position(value)); }

  CORRDET_INLINE double center(int64_t cell) const {
    return origin() + (static_cast<double>(cell) + 0.5) * width();
  }

  CORRDET_INLINE int64_t edge_cell(int64_t u) const { return cell(scores[u] - delta); }
  CORRDET_INLINE int64_t end_cell(int64_t u) const { return cell(scores[u] + reach()) + 1; }

  // The number of positives whose edge lies in a cell below `c`; or that are saturated from `c` on.
  template <bool saturated>
  __device__ int64_t number_before(int64_t c) const {
    int64_t begin = 0, end = scores.count;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (saturated ? end_cell(middle) <= c : edge_cell(middle) < c) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }
};

template <typename T>
CORRDET_INLINE Layout<T> make_layout(Pointer<const T> scores, int64_t capacity, int64_t positives,
                                     double lam, double delta, int64_t most_cells,
                                     int64_t most_bins) {
  return {
      {scores + sorted_buffer(positives) * capacity, positives}, lam, delta, most_cells, most_bins};
}

// moments: (bins, degree + 1) of the negatives, zeroed before. beyond: (blocks, 2) number of
// negatives above all cells, and the sum of their distances from the highest positive.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    moments_kernel(Pointer<const T> logits, Pointer<const int8_t> labels, int64_t count,
                   Pointer<const T> scores, int64_t capacity, double lam, double delta,
                   int64_t most_cells, int64_t most_bins, double scale,
                   Pointer<unsigned long long> moments, Pointer<double> beyond,
                   Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  constexpr int terms = Series<T>::degree + 1;
  const int64_t positives = info[kPositives];
  double number = 0.0, distance = 0.0;
  if (positives > 0 && int32_t(info[kFaults]) == 0) {
    const Layout<T> layout =
        make_layout<T>(scores, capacity, positives, lam, delta, most_cells, most_bins);
    const int64_t cells = layout.cell_count();
    const double low = layout.origin();
    const double top = layout.scores[positives - 1];
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x;
         cells > 0 && i < count; i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
      if (labels[i] != kDeviceNegative) continue;
      const double x = static_cast<double>(T(logits[i]));
      if (!(x > low)) continue;
      const double position = layout.position(x);
      if (!(position < static_cast<double>(cells))) {
        number += 1.0;
        distance += x - top;
        continue;
      }
      const int64_t cell = static_cast<int64_t>(position);
      const int64_t bin = cell + layout.scores.template number_below<false>(-delta, x);
      const double offset = position - static_cast<double>(cell) - 0.5;
      double power = scale;
      for (int k = 0; k < terms; ++k) {
        const long long fixed = static_cast<long long>(rint(power));
        CORRDET_ATOMIC_ADD(moments, bin * terms + k, static_cast<unsigned long long>(fixed));
        power *= offset;
      }
    }
  }
  number = block_reduce(number, shared, Add());
  distance = block_reduce(distance, shared, Add());
  if (threadIdx.x == 0) {
    beyond[2 * blockIdx.x] = number;
    beyond[2 * blockIdx.x + 1] = distance;
  }
}

CORRDET_INLINE double from_fixed(unsigned long long value, double scale) {
  return static_cast<double>(static_cast<long long>(value)) / scale;
}

// totals: (cells, degree + 1) moments of whole cells. counts, distances: (cells + 1,) of the
// negatives of a cell and all above, distances from the highest positive. One block.
template <typename T>
__global__ void __launch_bounds__(kSmoothSolveThreads, 1)
    cell_totals_kernel(Pointer<const T> scores, int64_t capacity, double lam, double delta,
                       int64_t most_cells, int64_t most_bins, double scale,
                       Pointer<const unsigned long long> moments, Pointer<const double> beyond,
                       int64_t beyond_blocks, Pointer<double> totals, Pointer<double> counts,
                       Pointer<double> distances, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  constexpr int terms = Series<T>::degree + 1;
  const int64_t positives = info[kPositives];
  if (positives == 0 || int32_t(info[kFaults]) != 0) return;
  const Layout<T> layout =
      make_layout<T>(scores, capacity, positives, lam, delta, most_cells, most_bins);
  const int64_t cells = layout.cell_count();
  if (cells < 0) return;
  const double top = layout.scores[positives - 1];
  for (int64_t c = threadIdx.x; c < cells; c += blockDim.x) {
    const int64_t begin = c + layout.template number_before<false>(c);
    const int64_t end = c + layout.template number_before<false>(c + 1) + 1;
    for (int k = 0; k < terms; ++k) {
      unsigned long long sum = 0;
      for (int64_t bin = begin; bin < end; ++bin) sum += moments[bin * terms + k];
      totals[c * terms + k] = from_fixed(sum, scale);
    }
  }
  double number = 0.0, distance = 0.0;
  for (int64_t i = threadIdx.x; i < beyond_blocks; i += blockDim.x) {
    number += double(beyond[2 * i]);
    distance += double(beyond[2 * i + 1]);
  }
  number = block_reduce(number, shared, Add());
  distance = block_reduce(distance, shared, Add());
  if (threadIdx.x == 0) {
    counts[cells] = number;
    distances[cells] = distance;
  }
  block_scan(
      cells, shared, Add(), [&](int64_t i) { return double(totals[(cells - 1 - i) * terms]); },
      [&](int64_t i, double sum) { counts[cells - 1 - i] = number + sum; });
  block_scan(
      cells, shared, Add(),
      [&](int64_t i) {
        const int64_t c = cells - 1 - i;
        return double(totals[c * terms]) * (layout.center(c) - top) +
               double(totals[c * terms + 1]) * layout.width();
      },
      [&](int64_t i, double sum) { distances[cells - 1 - i] = distance + sum; });
}

// What a thread has of the sums over the negatives that count: of sigmoids, of softplus / lambda,
// and their number.
struct ErrorSums {
  double error = 0.0, loss = 0.0, number = 0.0;
};

template <typename T>
__device__ ErrorSums sums_over_cells(const Layout<T>& layout, int64_t u, double scale,
                                     Pointer<const unsigned long long> moments,
                                     Pointer<const double> totals, Pointer<const double> counts,
                                     Pointer<const double> distances) {
  constexpr int degree = Series<T>::degree, terms = degree + 1;
  const double score = layout.scores[u], lam = layout.lam;
  const int64_t own = layout.edge_cell(u), end = layout.end_cell(u);
  ErrorSums sums;
  for (int64_t c = own + threadIdx.x; c < end; c += kPairThreads) {
    double powers[terms];
    if (c == own) {
      const int64_t first =
          layout.scores.template number_below<true>(-layout.delta, score - layout.delta);
      const int64_t last = layout.template number_before<false>(c + 1);
      for (int k = 0; k < terms; ++k) {
        unsigned long long sum = 0;
        for (int64_t bin = c + first; bin <= c + last; ++bin) sum += moments[bin * terms + k];
        powers[k] = from_fixed(sum, scale);
      }
    } else {
      for (int k = 0; k < terms; ++k) powers[k] = totals[c * terms + k];
    }
    sums.number += powers[0];
    if (powers[0] == 0.0) continue;
    const double y = lam * (layout.center(c) - score);
    double sigmoids[terms], softpluses[terms];
    sigmoid_series<degree>(device_sigmoid(y), sigmoids);
    softplus_series<degree>(device_softplus(y), sigmoids, softpluses);
    for (int k = 0; k < terms; ++k) {
      sums.error += sigmoids[k] * powers[k];
      sums.loss += softpluses[k] * powers[k] / lam;
    }
  }
  if (threadIdx.x == 0) {
    // Beyond, the sigmoid is 1 and the softplus is y.
    const double beyond = counts[end], top = layout.scores[layout.scores.count - 1];
    sums.number += beyond;
    sums.error += beyond;
    sums.loss += double(distances[end]) + beyond * (top - score);
  }
  return sums;
}

template <typename T>
__device__ ErrorSums sums_over_pairs(const Layout<T>& layout, int64_t u, Pointer<const T> logits,
                                     Pointer<const int8_t> labels, int64_t count) {
  const double score = layout.scores[u], lam = layout.lam;
  ErrorSums sums;
  for (int64_t i = threadIdx.x; i < count; i += kPairThreads) {
    const double distance = static_cast<double>(T(logits[i])) - score;
    if (labels[i] != kDeviceNegative || !(distance > -layout.delta)) continue;
    const bool saturated = distance > layout.reach();
    sums.number += 1.0;
    sums.error += saturated ? 1.0 : device_sigmoid(lam * distance);
    sums.loss += saturated ? distance : device_softplus(lam * distance) / lam;
  }
  return sums;
}

// Per positive u, a block each, in sorted order: the sum of sigmoids over all samples that count,
// over its false positives, of softplus / lambda over the same, and the number of negatives. ious:
// of the positives by ordinal, where `paired`.
template <typename T>
__global__ void __launch_bounds__(kPairThreads, 1)
    smooth_sums_kernel(Pointer<const T> logits, Pointer<const int8_t> labels, int64_t count,
                       Pointer<const T> scores, Pointer<const int32_t> all_ordinals,
                       int64_t capacity, double lam, double delta, int64_t most_cells,
                       int64_t most_bins, double scale, Pointer<const unsigned long long> moments,
                       Pointer<const double> totals, Pointer<const double> counts,
                       Pointer<const double> distances, bool paired, Pointer<const double> ious,
                       Pointer<double> rank_sums, Pointer<double> error_sums,
                       Pointer<double> loss_sums, Pointer<double> negatives,
                       Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t positives = info[kPositives];
  if (positives == 0 || int32_t(info[kFaults]) != 0) return;
  const Layout<T> layout =
      make_layout<T>(scores, capacity, positives, lam, delta, most_cells, most_bins);
  const auto ordinals = all_ordinals + sorted_buffer(positives) * capacity;
  const int64_t cells = layout.cell_count();
  for (int64_t u = blockIdx.x; u < positives; u += gridDim.x) {
    const double score = layout.scores[u];
    const ErrorSums negative_sums =
        cells > 0 ? sums_over_cells<T>(layout, u, scale, moments, totals, counts, distances)
                  : sums_over_pairs<T>(layout, u, logits, labels, count);
    double error = negative_sums.error, loss = negative_sums.loss;
    double number = negative_sums.number;
    double rank = error;
    for (int64_t v = layout.scores.template number_nearer<true>(-delta, score) + threadIdx.x;
         v < positives; v += kPairThreads) {
      const double distance = layout.scores[v] - score;
      const double value = device_sigmoid(lam * distance);
      rank += value;
      if (paired && double(ious[int32_t(ordinals[v])]) < double(ious[int32_t(ordinals[u])])) {
        error += value;
        loss += distance > layout.reach() ? distance : device_softplus(lam * distance) / lam;
      }
    }
    rank = block_reduce(rank, shared, Add());
    error = block_reduce(error, shared, Add());
    loss = block_reduce(loss, shared, Add());
    number = block_reduce(number, shared, Add());
    if (threadIdx.x == 0) {
      rank_sums[u] = rank;
      error_sums[u] = error;
      loss_sums[u] = loss;
      negatives[u] = number;
    }
  }
}

// One block. Turns rank_sums into shares[u] / P, and writes the loss. saturated: (P + 1,) prefix
// sums of the shares.
template <typename T>
__global__ void __launch_bounds__(kSmoothSolveThreads, 1)
    smooth_solve_kernel(Pointer<const int32_t> all_ordinals, int64_t capacity,
                        Distance error_distance, Balance balance_by, bool paired,
                        bool weight_by_iou, Pointer<const double> ious, Pointer<double> rank_sums,
                        Pointer<const double> error_sums, Pointer<const double> loss_sums,
                        Pointer<const double> negatives, Pointer<double> saturated,
                        Pointer<T> value, Pointer<int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t positives = info[kPositives];
  double faults = int32_t(info[kFaults]) != 0 ? 1.0 : 0.0;
  if (paired) {
    for (int64_t k = threadIdx.x; k < positives; k += blockDim.x) {
      const double iou = ious[k];
      if (!(iou >= 0.0 && iou <= 1.0)) faults += 1.0;
    }
  }
  faults = block_reduce(faults, shared, Add());
  if (positives == 0 || faults > 0.0) {
    if (threadIdx.x == 0) {
      value[0] = faults > 0.0 ? static_cast<T>(nan("")) : T(0);
      if (faults > 0.0) info[kFaults] = 1;
    }
    return;
  }
  const auto ordinals = all_ordinals + sorted_buffer(positives) * capacity;
  double total = 0.0;
  for (int64_t u = threadIdx.x; u < positives; u += blockDim.x) {
    // As in the AP loss, a positive counts itself by 1; as the authors run APE, by sigma(0).
    double balance = double(rank_sums[u]) + (paired ? 0.0 : 0.5);
    if (balance_by == Balance::negatives)
      balance = double(negatives[u]) > 1.0 ? double(negatives[u]) : 1.0;
    const double weight = paired && weight_by_iou ? double(ious[int32_t(ordinals[u])]) : 1.0;
    const double share = weight / balance / static_cast<double>(positives);
    total += share * (error_distance == Distance::cross_entropy ? double(loss_sums[u])
                                                                : double(error_sums[u]));
    rank_sums[u] = share;
  }
  total = block_reduce(total, shared, Add());
  if (threadIdx.x == 0) {
    value[0] = static_cast<T>(total);
    saturated[0] = 0.0;
  }
  block_scan(
      positives, shared, Add(), [&](int64_t u) { return double(rank_sums[u]); },
      [&](int64_t u, double sum) { saturated[u + 1] = sum; });
}

// For each bin, a block per cell, the polynomial in the offset of the sum over positives of
// shares[u] * sigmoid(lam (x - s_u)).
template <typename T>
__global__ void __launch_bounds__(kPairThreads, 1)
    polynomials_kernel(Pointer<const T> scores, int64_t capacity, double lam, double delta,
                       int64_t most_cells, int64_t most_bins, Pointer<const double> shares,
                       Pointer<const double> saturated, Pointer<double> polynomials,
                       Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  constexpr int degree = Series<T>::degree, terms = degree + 1;
  const int64_t positives = info[kPositives];
  if (positives == 0 || int32_t(info[kFaults]) != 0) return;
  const Layout<T> layout =
      make_layout<T>(scores, capacity, positives, lam, delta, most_cells, most_bins);
  const int64_t cells = layout.cell_count();
  for (int64_t c = blockIdx.x; c < cells; c += gridDim.x) {
    const int64_t begin = layout.template number_before<true>(c);
    const int64_t edges_begin = layout.template number_before<false>(c);
    const int64_t edges_end = layout.template number_before<false>(c + 1);
    const double center = layout.center(c);
    double sums[terms] = {};
    for (int64_t u = begin + threadIdx.x; u < edges_begin; u += kPairThreads) {
      double series[terms];
      sigmoid_series<degree>(device_sigmoid(lam * (center - layout.scores[u])), series);
      for (int k = 0; k < terms; ++k) sums[k] += double(shares[u]) * series[k];
    }
    for (int k = 0; k < terms; ++k) sums[k] = block_reduce(sums[k], shared, Add());
    if (threadIdx.x == 0) {
      sums[0] += double(saturated[begin]);
      // Edges within the cell: each bin has those below it.
      for (int64_t j = edges_begin; j <= edges_end; ++j) {
        for (int k = 0; k < terms; ++k) polynomials[(c + j) * terms + k] = sums[k];
        if (j == edges_end) break;
        double series[terms];
        sigmoid_series<degree>(device_sigmoid(lam * (center - layout.scores[j])), series);
        for (int k = 0; k < terms; ++k) sums[k] += double(shares[j]) * series[k];
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    smooth_gradient_kernel(Pointer<const T> logits, Pointer<const int8_t> labels, int64_t count,
                           Pointer<const T> scores, int64_t capacity, double lam, double delta,
                           int64_t most_cells, int64_t most_bins, Pointer<const double> shares,
                           Pointer<const double> saturated, Pointer<const double> polynomials,
                           Pointer<T> gradient, Pointer<const int32_t> info) {
  constexpr int degree = Series<T>::degree, terms = degree + 1;
  const int64_t positives = info[kPositives];
  const bool undefined = int32_t(info[kFaults]) != 0;
  const bool defined = positives > 0 && !undefined;
  const Layout<T> layout =
      make_layout<T>(scores, capacity, positives, lam, delta, most_cells, most_bins);
  const int64_t cells = defined ? layout.cell_count() : 0;
  const double low = defined ? layout.origin() : 0.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    double sum = undefined ? nan("") : 0.0;
    if (defined && labels[i] == kDeviceNegative) {
      const double x = static_cast<double>(T(logits[i]));
      if (cells > 0 && x > low) {
        const double position = layout.position(x);
        if (position < static_cast<double>(cells)) {
          const int64_t cell = static_cast<int64_t>(position);
          const int64_t bin = cell + layout.scores.template number_below<false>(-delta, x);
          const double offset = position - static_cast<double>(cell) - 0.5;
          for (int k = degree; k >= 0; --k) {
            sum = sum * offset + double(polynomials[bin * terms + k]);
          }
        } else {
          sum = saturated[positives];
        }
      } else if (cells < 0) {
        int64_t u = layout.scores.template number_nearer<false>(-layout.reach(), x);
        sum = saturated[u];
        for (; u < positives && layout.scores[u] - x < delta; ++u) {
          sum += double(shares[u]) * device_sigmoid(lam * (x - layout.scores[u]));
        }
      }
    }
    gradient[i] = static_cast<T>(sum);
  }
}

// After smooth_gradient_kernel: what the positives get back, a block each.
template <typename T>
__global__ void __launch_bounds__(kPairThreads, 1)
    smooth_positives_kernel(Pointer<const T> scores, Pointer<const int32_t> all_ordinals,
                            Pointer<const int32_t> indices, int64_t capacity, double lam,
                            double delta, bool paired, Pointer<const double> ious,
                            Pointer<const double> shares, Pointer<const double> error_sums,
                            Pointer<T> gradient, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t positives = info[kPositives];
  if (positives == 0 || int32_t(info[kFaults]) != 0) return;
  const int64_t buffer = sorted_buffer(positives) * capacity;
  const SortedScores<T> sorted = {scores + buffer, positives};
  const auto ordinals = all_ordinals + buffer;
  for (int64_t v = blockIdx.x; v < positives; v += gridDim.x) {
    const double x = sorted[v];
    double sum = 0.0;
    if (paired) {
      const double iou = ious[int32_t(ordinals[v])];
      for (int64_t u = threadIdx.x; u < positives && sorted[u] - x < delta; u += kPairThreads) {
        if (double(ious[int32_t(ordinals[u])]) > iou) {
          sum += double(shares[u]) * device_sigmoid(lam * (x - sorted[u]));
        }
      }
    }
    sum = block_reduce(sum, shared, Add());
    if (threadIdx.x == 0) {
      gradient[int32_t(indices[int32_t(ordinals[v])])] =
          static_cast<T>(sum - double(shares[v]) * double(error_sums[v]));
    }
  }
}

}  // namespace corrdet
