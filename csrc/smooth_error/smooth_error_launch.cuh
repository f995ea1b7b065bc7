// What smooth_error launches, see common/launch.h.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "pairwise_error/samples_launch.cuh"
#include "smooth_error/smooth_error_kernel.cuh"
#include "smooth_error/smooth_loss.h"

namespace corrdet {

// Cells that there is memory for, within what is promised of an operator's memory.
inline int64_t smooth_most_cells(int64_t samples) { return 1024 + samples / 16; }

// The same for bins. More positives than an eighth of the samples, where their number is not known
// beforehand, are summed pair by pair.
inline int64_t smooth_most_bins(int64_t most_cells, int64_t samples, int64_t capacity,
                                bool paired) {
  return most_cells + (paired ? capacity + 1 : samples / 8 + 1024);
}

// value: (1,). gradient: (S,). ious: (positives,), or none, with positives -1. most_cells: cells
// that there is memory for, or -1 for as many as are worth it; with 0, pairs are summed one by one.
template <typename T, typename target_t, typename Device>
void launch_smooth_error(Device& device, Pointer<const T> logits, Pointer<const target_t> targets,
                         int64_t count, Distance distance, Balance balance, double lam,
                         double delta, Pointer<const double> ious, int64_t positives,
                         bool weight_by_iou, int64_t most_cells, Pointer<T> value,
                         Pointer<T> gradient) {
  constexpr int64_t terms = Series<T>::degree + 1;
  const DeviceSamples<T> samples =
      launch_samples<T, target_t>(device, logits, targets, count, false, positives, INFINITY);
  const int64_t capacity = samples.capacity;
  if (most_cells < 0) most_cells = smooth_most_cells(count);
  const bool paired = positives >= 0;
  const int64_t most_bins = smooth_most_bins(most_cells, count, capacity, paired);
  const double scale = fixed_scale(count);
  const auto moments = device.template zeros<unsigned long long>("moments", most_bins * terms);
  const Pointer<double> totals = device.template empty<double>("totals", most_cells * terms);
  const Pointer<double> counts = device.template empty<double>("counts", most_cells + 1);
  const Pointer<double> distances = device.template empty<double>("distances", most_cells + 1);
  const int64_t blocks = device.available_blocks(sample_blocks(count));
  const Pointer<double> beyond = device.template empty<double>("beyond", 2 * blocks);
  const Pointer<double> ranks = device.template empty<double>("ranks", capacity);
  const Pointer<double> errors = device.template empty<double>("errors", capacity);
  const Pointer<double> losses = device.template empty<double>("losses", capacity);
  const Pointer<double> negatives = device.template empty<double>("negatives", capacity);
  const Pointer<double> saturated = device.template empty<double>("saturated", capacity + 1);

  constexpr int64_t sample_shared = kSampleThreads * sizeof(double);
  constexpr int64_t pair_shared = kPairThreads * sizeof(double);
  constexpr int64_t solve_shared = kSmoothSolveThreads * sizeof(double);
  const Grid over_positives = {blocks_for(capacity, 8192), kPairThreads, pair_shared};
  device.launch({blocks, kSampleThreads, sample_shared}, moments_kernel<T>, logits, samples.labels,
                count, samples.scores, capacity, lam, delta, most_cells, most_bins, scale, moments,
                beyond, samples.info);
  device.launch({1, kSmoothSolveThreads, solve_shared}, cell_totals_kernel<T>, samples.scores,
                capacity, lam, delta, most_cells, most_bins, scale, moments, beyond, blocks, totals,
                counts, distances, samples.info);
  device.launch(over_positives, smooth_sums_kernel<T>, logits, samples.labels, count,
                samples.scores, samples.ordinals, capacity, lam, delta, most_cells, most_bins,
                scale, moments, totals, counts, distances, paired, ious, ranks, errors, losses,
                negatives, samples.info);
  device.launch({1, kSmoothSolveThreads, solve_shared}, smooth_solve_kernel<T>, samples.ordinals,
                capacity, distance, balance, paired, weight_by_iou, ious, ranks, errors, losses,
                negatives, saturated, value, samples.info);
  // The moments have been summed up.
  const auto polynomials = device.template reuse<double>("polynomials", moments, most_bins * terms);
  device.launch({blocks_for(most_cells, 1024), kPairThreads, pair_shared}, polynomials_kernel<T>,
                samples.scores, capacity, lam, delta, most_cells, most_bins, ranks, saturated,
                polynomials, samples.info);
  device.launch({sample_blocks(count), kSampleThreads}, smooth_gradient_kernel<T>, logits,
                samples.labels, count, samples.scores, capacity, lam, delta, most_cells, most_bins,
                ranks, saturated, polynomials, gradient, samples.info);
  device.launch(over_positives, smooth_positives_kernel<T>, samples.scores, samples.ordinals,
                samples.indices, capacity, lam, delta, paired, ious, ranks, errors, gradient,
                samples.info);
}

CORRDET_EMULATED(smooth_error, launch_smooth_error<T, double, Device>);

}  // namespace corrdet
