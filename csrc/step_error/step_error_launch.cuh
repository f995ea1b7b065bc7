// What step_error launches, see common/launch.h.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "pairwise_error/samples_launch.cuh"
#include "step_error/sorting_kernel.cuh"
#include "step_error/step_passes_kernel.cuh"
#include "step_error/step_solve_kernel.cuh"

namespace corrdet {

// The sorting error of Rank & Sort Loss, after the ranking error. memory: (2 P + 2,).
template <typename T, typename target_t, typename Device>
void launch_sorting_errors(Device& device, const DeviceSamples<T>& samples,
                           const DevicePositives<T>& positives, Pointer<const target_t> targets,
                           Pointer<double> ious, Pointer<double> memory, Pointer<T> values,
                           Pointer<T> gradient) {
  const Pointer<double> errors = memory, missorted = memory + (samples.capacity + 1);
  device.launch({positive_blocks(samples.capacity), kSampleThreads},
                gather_targets_kernel<target_t>, targets, samples.indices, ious, samples.info);
  constexpr int64_t shared_bytes = kSampleThreads * sizeof(double);
  const Grid grid = {blocks_for(samples.capacity, 4096), kSampleThreads, shared_bytes};
  device.launch(grid, sorting_errors_kernel<T>, positives, samples.ordinals, ious, errors,
                missorted, samples.info);
  device.launch(grid, sorting_gradient_kernel<T>, positives, samples.ordinals, samples.indices,
                ious, errors, missorted, gradient, values, samples.info);
}

// values: (2,). gradients: (rows, S). localization and its gradient: (localizations,), or none,
// with localizations -1.
template <typename T, typename target_t, typename Device>
void launch_step_error(Device& device, Pointer<const T> logits, Pointer<const target_t> targets,
                       int64_t count, StepLoss loss, double delta,
                       Pointer<const double> localization, int64_t localizations, Pointer<T> values,
                       Pointer<T> gradients, Pointer<T> localization_gradient) {
  const DeviceSamples<T> samples = launch_samples<T, target_t>(
      device, logits, targets, count, has_soft_targets(loss), localizations, kFarLogit * delta);
  const int64_t capacity = samples.capacity;
  const double scale = fixed_scale(count);
  const Pointer<int32_t> counts = device.template zeros<int32_t>("counts", 2 * capacity + 2);
  const auto sums = device.template zeros<unsigned long long>("sums", 2 * capacity + 2);
  // Where the table is no larger than the sums, they take turns in the same memory: each stretch's
  // sum is read before its prefix sum is written, by the same thread.
  const int64_t size = step_table_size(loss, capacity);
  const Pointer<double> table = has_localization(loss)
                                    ? device.template empty<double>("table", size)
                                    : device.template reuse<double>("table", sums, size);
  const auto false_positives = device.template empty<double>("false positives", capacity);
  const Pointer<double> shares = device.template empty<double>("shares", capacity);
  const auto positions = device.template empty<double>("positions", capacity);
  const DevicePositives<T> positives = {samples.scores, positions, capacity, delta};
  device.launch({1, kSampleThreads, kSampleThreads * static_cast<int64_t>(sizeof(double))},
                near_scores_kernel<T>, samples.scores, capacity, delta, positions, samples.info);
  device.launch({sample_blocks(count), kSampleThreads}, stretches_kernel<T>, logits, samples.labels,
                count, positives, scale, counts, sums, samples.info);
  constexpr int64_t shared_bytes = kSolveThreads * sizeof(double);
  device.launch({1, kSolveThreads, shared_bytes}, step_solve_kernel<T>, positives, samples.ordinals,
                loss, scale, localization, counts, sums, false_positives, shares, table, values,
                localization_gradient, localizations, samples.info);
  device.launch({sample_blocks(count), kSampleThreads}, step_gradient_kernel<T>, logits,
                samples.labels, count, positives, table, gradients,
                static_cast<int>(gradient_rows(loss)), samples.info);
  device.launch({positive_blocks(capacity), kSampleThreads}, step_positives_kernel<T>,
                samples.ordinals, samples.indices, capacity, false_positives, shares, gradients,
                samples.info);
  if (loss == StepLoss::rank_sort) {
    // What the ranking error needed is free by now.
    launch_sorting_errors<T>(device, samples, positives, targets, false_positives, table, values,
                             gradients + count);
  }
}

CORRDET_EMULATED(step_error, launch_step_error<T, double, Device>);

}  // namespace corrdet
