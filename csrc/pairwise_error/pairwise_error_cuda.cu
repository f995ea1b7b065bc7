#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/cuda_launch.h"
#include "pairwise_error/pairwise_error.h"
#include "pairwise_error/samples_kernel.cuh"
#include "pairwise_error/smooth_error_kernel.cuh"
#include "pairwise_error/step_error_kernel.cuh"

// Nothing here waits for the device: how many positives there are stays on it, and launches are
// sized by what is known of the shapes.

namespace corrdet {
namespace {

// Blocks for kernels that step over samples; a function of the shapes, so that sums over blocks
// are the same on every device.
unsigned int sample_blocks(int64_t samples) {
  return static_cast<unsigned int>(std::clamp<int64_t>(ceil_divide(samples, 1024), 1, 1024));
}

unsigned int some_blocks(int64_t items, int64_t most) {
  return static_cast<unsigned int>(std::clamp<int64_t>(items, 1, most));
}

// Units of the sums over samples: as fine as 63 bits allow for all samples together.
double fixed_scale(int64_t samples) {
  int bits = 0;
  while (samples >> bits) ++bits;
  return std::ldexp(1.0, std::min(62 - bits, 46));
}

// Samples and sorted positives on the device.
struct DeviceSamples {
  DeviceSamples(const at::Tensor& logits, int64_t per_positive)
      : count(logits.numel()),
        capacity(std::max<int64_t>(per_positive >= 0 ? per_positive : count, 1)),
        expected(per_positive),
        stream(c10::cuda::getCurrentCUDAStream()) {
    const auto options = logits.options();
    kinds = at::empty({count}, options.dtype(at::kChar));
    info = at::zeros({kInfoSize}, options.dtype(at::kInt));
    places = at::empty({capacity}, options.dtype(at::kInt));
    scores = at::empty({2 * capacity}, options);
    ordinals = at::empty({2 * capacity}, options.dtype(at::kInt));
  }

  template <typename T>
  void read(const at::Tensor& logits, const at::Tensor& targets, bool graded) {
    const int64_t blocks = ceil_divide(count, kSamplesPerBlock);
    const at::Tensor counts = at::empty({blocks}, kinds.options().dtype(at::kInt));
    constexpr int64_t shared = kSampleThreads * sizeof(double);
    const T* const values = logits.const_data_ptr<T>();
    AT_DISPATCH_ALL_TYPES_AND(at::kBool, targets.scalar_type(), "targets", [&] {
      classify_kernel<T, scalar_t><<<grid_size(blocks), kSampleThreads, shared, stream>>>(
          values, targets.const_data_ptr<scalar_t>(), count, graded, kinds.data_ptr<int8_t>(),
          counts.data_ptr<int32_t>(), info.data_ptr<int32_t>());
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    compact_kernel<T><<<grid_size(blocks), kSampleThreads, shared, stream>>>(
        values, kinds.const_data_ptr<int8_t>(), counts.const_data_ptr<int32_t>(), count, capacity,
        expected, scores.data_ptr<T>(), ordinals.data_ptr<int32_t>(), places.data_ptr<int32_t>(),
        info.data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    sort_tiles_kernel<T><<<some_blocks(ceil_divide(capacity, kSortTile), 512), kSampleThreads,
                           2 * kSortTile * sizeof(double), stream>>>(
        scores.data_ptr<T>(), ordinals.data_ptr<int32_t>(), info.const_data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    int64_t from = 0;
    for (int64_t width = kSortTile; width < capacity; width *= 2, from = 1 - from) {
      merge_runs_kernel<T><<<positive_blocks(), kSampleThreads, 0, stream>>>(
          width, from, capacity, scores.data_ptr<T>(), ordinals.data_ptr<int32_t>(),
          info.const_data_ptr<int32_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }

  unsigned int positive_blocks() const {
    return some_blocks(ceil_divide(capacity, kSampleThreads), 512);
  }

  int64_t count, capacity, expected;
  c10::cuda::CUDAStream stream;
  at::Tensor kinds, info, places, scores, ordinals;
};

void check_count(const at::Tensor& logits) {
  TORCH_CHECK_VALUE(logits.numel() < (int64_t(1) << 31),
                    "on CUDA there may be up to 2^31 - 1 samples, got ", logits.numel());
}

at::Tensor wide_targets(const at::Tensor& targets) {
  const bool narrow = targets.scalar_type() == at::kHalf || targets.scalar_type() == at::kBFloat16;
  return (narrow ? targets.to(at::kFloat) : targets).contiguous();
}

DeviceStepLoss device_loss(StepLoss loss) {
  switch (loss) {
    case StepLoss::kAveragePrecision:
      return kDeviceAp;
    case StepLoss::kStep:
      return kDeviceStep;
    case StepLoss::kStepNegatives:
      return kDeviceStepNegatives;
    case StepLoss::kRankSort:
      return kDeviceRankSort;
    default:
      return kDeviceAlrp;
  }
}

template <typename T>
void launch_step(const at::Tensor& input, const at::Tensor& targets,
                 const std::optional<at::Tensor>& localization, DeviceStepLoss loss, double delta,
                 at::Tensor& values, at::Tensor& gradients, at::Tensor& localization_gradient) {
  DeviceSamples samples(input, localization ? localization->numel() : -1);
  samples.read<T>(input, targets, loss == kDeviceRankSort);
  const int64_t count = samples.count, capacity = samples.capacity;
  const cudaStream_t stream = samples.stream;
  const auto doubles = input.options().dtype(at::kDouble);
  const at::Tensor counts = at::zeros({2 * capacity + 2}, input.options().dtype(at::kInt));
  // Unsigned and double take turns in the same memory: each stretch's sum is read before its prefix
  // sum is written, by the same thread.
  const at::Tensor sums = at::zeros({2 * capacity + 2}, input.options().dtype(at::kLong));
  at::Tensor table = loss == kDeviceAlrp ? at::empty({4 * capacity + 4}, doubles)
                                         : at::from_blob(sums.data_ptr(), sums.sizes(), doubles);
  at::Tensor false_positives = at::empty({capacity}, doubles);
  const at::Tensor shares = at::empty({capacity}, doubles);
  const at::Tensor graded = localization ? localization->to(at::kDouble).contiguous() : shares;
  const double scale = fixed_scale(count);
  const T* const logits = input.const_data_ptr<T>();
  const T* const scores = samples.scores.const_data_ptr<T>();
  const int8_t* const kinds = samples.kinds.const_data_ptr<int8_t>();
  const int32_t* const ordinals = samples.ordinals.const_data_ptr<int32_t>();
  const int32_t* const places = samples.places.const_data_ptr<int32_t>();
  const int32_t* const info = samples.info.const_data_ptr<int32_t>();
  T* const gradient = gradients.data_ptr<T>();
  const auto* const unsigned_sums =
      reinterpret_cast<const unsigned long long*>(sums.const_data_ptr<int64_t>());
  stretches_kernel<T><<<sample_blocks(count), kSampleThreads, 0, stream>>>(
      logits, kinds, count, scores, capacity, delta, scale, counts.data_ptr<int32_t>(),
      reinterpret_cast<unsigned long long*>(sums.data_ptr<int64_t>()), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  step_solve_kernel<T><<<1, kSolveThreads, kSolveThreads * sizeof(double), stream>>>(
      scores, ordinals, capacity, loss, delta, scale, graded.const_data_ptr<double>(),
      counts.data_ptr<int32_t>(), unsigned_sums, false_positives.data_ptr<double>(),
      shares.data_ptr<double>(), table.data_ptr<double>(), values.data_ptr<T>(),
      localization_gradient.data_ptr<T>(), localization_gradient.numel(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  step_gradient_kernel<T><<<sample_blocks(count), kSampleThreads, 0, stream>>>(
      logits, kinds, count, scores, capacity, delta, table.const_data_ptr<double>(), gradient,
      static_cast<int>(gradients.size(0)), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  step_positives_kernel<T><<<samples.positive_blocks(), kSampleThreads, 0, stream>>>(
      ordinals, places, capacity, false_positives.const_data_ptr<double>(),
      shares.const_data_ptr<double>(), gradient, info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (loss != kDeviceRankSort) return;
  // What the ranking error needed is free by now.
  const at::Tensor ious = false_positives;
  double* const errors = table.data_ptr<double>();
  double* const missorted = errors + capacity + 1;
  AT_DISPATCH_ALL_TYPES_AND(at::kBool, targets.scalar_type(), "targets", [&] {
    gather_targets_kernel<scalar_t><<<samples.positive_blocks(), kSampleThreads, 0, stream>>>(
        targets.const_data_ptr<scalar_t>(), places, ious.data_ptr<double>(), info);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  constexpr int64_t shared = kSampleThreads * sizeof(double);
  const unsigned int blocks = some_blocks(capacity, 4096);
  sorting_errors_kernel<T><<<blocks, kSampleThreads, shared, stream>>>(
      scores, ordinals, capacity, delta, ious.const_data_ptr<double>(), errors, missorted, info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  sorting_gradient_kernel<T><<<blocks, kSampleThreads, shared, stream>>>(
      scores, ordinals, places, capacity, delta, ious.const_data_ptr<double>(), errors, missorted,
      gradient + count, values.data_ptr<T>(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> step_error(
    const at::Tensor& logits, const at::Tensor& targets, c10::string_view loss_name, double delta,
    const std::optional<at::Tensor>& localization) {
  check_samples(logits, targets);
  check_count(logits);
  const StepLoss loss = parse_step_loss({loss_name.data(), loss_name.size()});
  TORCH_CHECK_VALUE(std::isfinite(delta) && delta > 0, "delta must be positive and finite, got ",
                    delta);
  TORCH_CHECK_VALUE(localization.has_value() == (loss == StepLoss::kAlrp),
                    "localization is for, and needed by, the loss 'alrp'");
  if (localization) check_per_positive("localization", *localization, logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  const int64_t rows = loss == StepLoss::kRankSort ? 2 : 1;
  at::Tensor values = at::zeros({2}, input.options());
  at::Tensor gradients = at::empty({rows, input.numel()}, input.options());
  at::Tensor localization_gradient =
      at::zeros({localization ? localization->numel() : 0}, input.options());
  if (input.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "step_error", [&] {
      launch_step<scalar_t>(input, wide_targets(targets), localization, device_loss(loss), delta,
                            values, gradients, localization_gradient);
    });
  }
  return {values, gradients, localization_gradient};
}

template <typename T>
void launch_smooth(const at::Tensor& input, const at::Tensor& targets,
                   const std::optional<at::Tensor>& ious, const SmoothLoss& loss, at::Tensor& value,
                   at::Tensor& gradients) {
  constexpr int64_t terms = Series<T>::degree + 1;
  DeviceSamples samples(input, ious ? ious->numel() : -1);
  samples.read<T>(input, targets, false);
  const int64_t count = samples.count, capacity = samples.capacity;
  const cudaStream_t stream = samples.stream;
  const auto doubles = input.options().dtype(at::kDouble);
  // Room for cells and bins within the promised memory. More positives than an eighth of the
  // samples, where their number is not known beforehand, are summed pair by pair.
  const int64_t most_cells = 1024 + count / 16;
  const int64_t most_bins = most_cells + (ious ? capacity + 1 : count / 8 + 1024);
  at::Tensor moments = at::zeros({most_bins * terms}, input.options().dtype(at::kLong));
  // The moments have been summed up when the polynomials are written.
  const at::Tensor polynomials = at::from_blob(moments.data_ptr(), moments.sizes(), doubles);
  const at::Tensor totals = at::empty({most_cells * terms}, doubles);
  const at::Tensor counts = at::empty({most_cells + 1}, doubles);
  const at::Tensor distances = at::empty({most_cells + 1}, doubles);
  const at::Tensor beyond = at::empty({2 * sample_blocks(count)}, doubles);
  const at::Tensor ranks = at::empty({capacity}, doubles), errors = at::empty({capacity}, doubles);
  const at::Tensor losses = at::empty({capacity + 1}, doubles);
  const at::Tensor negatives = at::empty({capacity}, doubles);
  const bool paired = ious.has_value();
  const at::Tensor wide_ious = paired ? ious->to(at::kDouble).contiguous() : ranks;
  const double scale = fixed_scale(count);
  const double lam = loss.lam, delta = loss.delta;
  const T* const logits = input.const_data_ptr<T>();
  const T* const scores = samples.scores.const_data_ptr<T>();
  const int8_t* const kinds = samples.kinds.const_data_ptr<int8_t>();
  const int32_t* const ordinals = samples.ordinals.const_data_ptr<int32_t>();
  const int32_t* const places = samples.places.const_data_ptr<int32_t>();
  const int32_t* const info = samples.info.const_data_ptr<int32_t>();
  const double* const iou = wide_ious.const_data_ptr<double>();
  T* const gradient = gradients.data_ptr<T>();
  auto* const integers = reinterpret_cast<unsigned long long*>(moments.data_ptr<int64_t>());
  constexpr int64_t pair_shared = kPairThreads * sizeof(double);
  constexpr int64_t solve_shared = kSmoothSolveThreads * sizeof(double);
  moments_kernel<T>
      <<<sample_blocks(count), kSampleThreads, kSampleThreads * sizeof(double), stream>>>(
          logits, kinds, count, scores, capacity, lam, delta, most_cells, most_bins, scale,
          integers, beyond.data_ptr<double>(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  cell_totals_kernel<T><<<1, kSmoothSolveThreads, solve_shared, stream>>>(
      scores, capacity, lam, delta, most_cells, most_bins, scale, integers,
      beyond.const_data_ptr<double>(), sample_blocks(count), totals.data_ptr<double>(),
      counts.data_ptr<double>(), distances.data_ptr<double>(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const unsigned int blocks = some_blocks(capacity, 8192);
  smooth_sums_kernel<T><<<blocks, kPairThreads, pair_shared, stream>>>(
      logits, kinds, count, scores, ordinals, capacity, lam, delta, most_cells, most_bins, scale,
      integers, totals.const_data_ptr<double>(), counts.const_data_ptr<double>(),
      distances.const_data_ptr<double>(), paired, iou, ranks.data_ptr<double>(),
      errors.data_ptr<double>(), losses.data_ptr<double>(), negatives.data_ptr<double>(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor saturated = at::empty({capacity + 1}, doubles);
  smooth_solve_kernel<T><<<1, kSmoothSolveThreads, solve_shared, stream>>>(
      ordinals, capacity, loss.cross_entropy, loss.balance_negatives, paired, loss.weight_by_iou,
      iou, ranks.data_ptr<double>(), errors.const_data_ptr<double>(),
      losses.const_data_ptr<double>(), negatives.const_data_ptr<double>(),
      saturated.data_ptr<double>(), value.data_ptr<T>(), samples.info.data_ptr<int32_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  polynomials_kernel<T><<<some_blocks(most_cells, 1024), kPairThreads, pair_shared, stream>>>(
      scores, capacity, lam, delta, most_cells, most_bins, ranks.const_data_ptr<double>(),
      saturated.const_data_ptr<double>(), polynomials.data_ptr<double>(), info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  smooth_gradient_kernel<T><<<sample_blocks(count), kSampleThreads, 0, stream>>>(
      logits, kinds, count, scores, capacity, lam, delta, most_cells, most_bins,
      ranks.const_data_ptr<double>(), saturated.const_data_ptr<double>(),
      polynomials.const_data_ptr<double>(), gradient, info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  smooth_positives_kernel<T><<<blocks, kPairThreads, pair_shared, stream>>>(
      scores, ordinals, places, capacity, lam, delta, paired, iou, ranks.const_data_ptr<double>(),
      errors.const_data_ptr<double>(), gradient, info);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor> smooth_error(const at::Tensor& logits, const at::Tensor& targets,
                                                c10::string_view distance, c10::string_view balance,
                                                double lam, double delta,
                                                const std::optional<at::Tensor>& ious,
                                                bool weight_by_iou) {
  check_samples(logits, targets);
  check_count(logits);
  const SmoothLoss loss =
      parse_smooth_loss({distance.data(), distance.size()}, {balance.data(), balance.size()}, lam,
                        delta, weight_by_iou);
  if (ious) check_per_positive("ious", *ious, logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  at::Tensor value = at::zeros({1}, input.options());
  at::Tensor gradients = at::empty({1, input.numel()}, input.options());
  if (input.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "smooth_error", [&] {
      launch_smooth<scalar_t>(input, wide_targets(targets), ious, loss, value, gradients);
    });
  }
  return {value, gradients};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("step_error", &step_error);
  m.impl("smooth_error", &smooth_error);
}

}  // namespace corrdet
