// The kernels of csrc/ under emulation, launched as the .cu files launch them, and kernels with a
// fault each, which the emulation must find. Plain C functions for ctypes: they return an empty
// string, or the fault.

#include "cuda_emulation.h"

// After the emulation, whose definitions they use.
#include "elementwise_iou/elementwise_iou_kernel.cuh"
#include "pairwise_error/smooth_error_kernel.cuh"
#include "pairwise_error/step_error_kernel.cuh"
#include "pairwise_iou/pairwise_iou_kernel.cuh"
#include "soft_rank/soft_rank_kernel.cuh"

using corrdet::IouKind;
using emulation::Buffer;
using emulation::Launch;
using emulation::Order;

namespace {

// As tests/ops/emulation/emulator.py has it.
struct Options {
  int64_t order;         // emulation::Order
  int64_t grid;          // blocks at most
  int64_t threads;       // of a block, where a kernel can run with any number; or see Launcher
  int64_t skip_barrier;  // -1: none
  int64_t missing;       // values by which the outputs are declared shorter than they are
};

template <typename T>
Buffer<T> input(const char* name, const T* values, int64_t count) {
  return {name, const_cast<T*>(values), count, true};
}

template <typename T>
Buffer<T> output(const char* name, T* values, int64_t count) {
  return {name, values, count, false};
}

int64_t ceil_divide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

Launch configure(const Options& options, int64_t blocks, int64_t threads, size_t shared_bytes = 0) {
  return {static_cast<unsigned int>(std::min(blocks, options.grid)),
          static_cast<unsigned int>(threads), shared_bytes, static_cast<Order>(options.order),
          options.skip_barrier};
}

const char* report(const std::function<void()>& run) {
  static std::string message;
  message.clear();
  try {
    run();
  } catch (const std::exception& caught) {
    message = caught.what();
  }
  return message.c_str();
}

template <typename Function>
void with_kind(int64_t kind, Function function) {
  if (kind == 0) function(std::integral_constant<IouKind, IouKind::kIou>{});
  if (kind == 1) function(std::integral_constant<IouKind, IouKind::kGiou>{});
  if (kind == 2) function(std::integral_constant<IouKind, IouKind::kDiou>{});
  if (kind == 3) function(std::integral_constant<IouKind, IouKind::kCiou>{});
}

template <typename T>
Buffer<T> prepare(const Options& options, Buffer<T>& boxes, std::vector<T>& room, bool with_angle) {
  const int64_t count = boxes.size / 4;
  room.resize(corrdet::kBoxFields * count);
  Buffer<T> prepared = output("prepared boxes", room.data(), corrdet::kBoxFields * count);
  const int64_t threads = corrdet::kPairwiseThreads;
  Launch config = configure(options, ceil_divide(count, threads), threads);
  config.skip_barrier = -1;
  emulation::launch(config, [&] {
    corrdet::prepare_boxes_kernel<T, T>(&boxes, count, 4, 1, with_angle, &prepared);
  });
  return input(prepared.name.c_str(), room.data(), prepared.size);  // by another launch: no races
}

template <typename T>
void pairwise_iou(const Options& options, const T* values1, int64_t n, const T* values2, int64_t m,
                  int64_t kind, T* result) {
  Buffer<T> boxes1 = input("boxes1", values1, 4 * n), boxes2 = input("boxes2", values2, 4 * m);
  std::vector<T> room1, room2;
  Buffer<T> prepared1 = prepare(options, boxes1, room1, kind == 3);
  Buffer<T> prepared2 = prepare(options, boxes2, room2, kind == 3);
  Buffer<T> matrix = output("output", result, n * m - options.missing);
  with_kind(kind, [&](auto constant) {
    const int64_t blocks = ceil_divide(n * m, corrdet::kForwardTile);
    emulation::launch(configure(options, blocks, corrdet::kPairwiseThreads), [&] {
      corrdet::pairwise_iou_forward_kernel<T, T, constant.value>(&prepared1, n, &prepared2, m,
                                                                 &matrix);
    });
  });
}

template <typename T>
void pairwise_iou_backward(const Options& options, const T* grad, int64_t transposed,
                           const T* values1, int64_t n, const T* values2, int64_t m, int64_t kind,
                           T* result) {
  Buffer<T> boxes1 = input("boxes1", values1, 4 * n), boxes2 = input("boxes2", values2, 4 * m);
  Buffer<T> upstream = input("grad", grad, n * m);
  std::vector<T> room1, room2;
  Buffer<T> prepared1 = prepare(options, boxes1, room1, kind == 3);
  Buffer<T> prepared2 = prepare(options, boxes2, room2, kind == 3);
  const int64_t chunks = ceil_divide(m, corrdet::kReductionChunk);
  std::vector<double> room(chunks * corrdet::kBoxGradientFields * n);
  Buffer<double> partial = output("partial", room.data(), room.size() - options.missing);
  with_kind(kind, [&](auto constant) {
    const Launch config =
        configure(options, ceil_divide(n, corrdet::kOwnTile) * chunks, corrdet::kPairwiseThreads,
                  corrdet::kPairwiseBackwardShared * sizeof(T));
    emulation::launch(config, [&] {
      corrdet::pairwise_iou_backward_kernel<T, T, constant.value>(&upstream, transposed ? 1 : m,
                                                                  transposed ? n : 1, &prepared1, n,
                                                                  &prepared2, m, &partial);
    });
  });
  Buffer<double> sums = input("partial", room.data(), room.size());
  Buffer<T> gradient = output("output", result, 4 * n);
  const int64_t threads = corrdet::kPairwiseThreads;
  emulation::launch(configure(options, ceil_divide(n, threads), threads), [&] {
    corrdet::finish_gradient_kernel<T, T>(&sums, chunks, &boxes1, n, 4, 1, kind == 3, &gradient);
  });
}

template <typename T>
void elementwise_iou(const Options& options, const T* grad, const T* values1, const T* values2,
                     int64_t n, int64_t kind, T* result, T* result1, T* result2) {
  Buffer<T> boxes1 = input("boxes1", values1, 4 * n), boxes2 = input("boxes2", values2, 4 * n);
  Buffer<T> upstream = input("grad", grad, n);
  Buffer<T> ious = output("output", result, n - options.missing);
  Buffer<T> gradient1 = output("output1", result1, 4 * n);
  Buffer<T> gradient2 = output("output2", result2, 4 * n);
  const corrdet::StridedBoxes<T> strided1{&boxes1, 4, 1}, strided2{&boxes2, 4, 1};
  const int64_t threads = corrdet::kElementwiseThreads;
  const Launch config = configure(options, ceil_divide(n, threads), threads);
  with_kind(kind, [&](auto constant) {
    emulation::launch(config, [&] {
      corrdet::elementwise_iou_forward_kernel<T, T, constant.value>(strided1, strided2, n, &ious);
    });
    emulation::launch(config, [&] {
      corrdet::elementwise_iou_backward_kernel<T, T, constant.value>(
          &upstream, 1, strided1, strided2, n, &gradient1, &gradient2);
    });
  });
}

template <typename T>
void soft_rank(const Options& options, const T* values, const int64_t* positions, int64_t rows,
               int64_t n, double strength, T* ranks, int64_t* starts) {
  Buffer<T> sorted = input("sorted", values, rows * n);
  Buffer<int64_t> permutation = input("permutation", positions, rows * n);
  std::vector<corrdet::Pool> room(rows * n);
  Buffer<corrdet::Pool> workspace = output("workspace", room.data(), rows * n);
  Buffer<T> result = output("ranks", ranks, rows * n - options.missing);
  Buffer<int64_t> pools = output("pools", starts, rows * n);
  const Launch config =
      configure(options, rows, options.threads, options.threads * corrdet::kSoftRankForwardShared);
  emulation::launch(config, [&] {
    corrdet::soft_rank_forward_kernel<T>(&sorted, &permutation, rows, n, strength, &workspace,
                                         &result, &pools);
  });
}

template <typename T>
void soft_rank_backward(const Options& options, const T* grad, const int64_t* positions,
                        const int64_t* starts, int64_t rows, int64_t n, double strength,
                        T* result) {
  Buffer<T> upstream = input("grad", grad, rows * n);
  Buffer<int64_t> permutation = input("permutation", positions, rows * n);
  Buffer<int64_t> pools = input("pools", starts, rows * n);
  Buffer<T> gradients = output("output", result, rows * n - options.missing);
  const Launch config =
      configure(options, rows, options.threads, options.threads * corrdet::kSoftRankBackwardShared);
  emulation::launch(config, [&] {
    corrdet::soft_rank_backward_kernel<T>(&upstream, &permutation, &pools, rows, n, strength,
                                          &gradients);
  });
}

// A buffer on the emulated device. Kernels run one after the other: launch() lets all buffers
// forget who touched them.
template <typename T>
struct Room {
  Room(const char* name, int64_t count, bool readable = false)
      : values(count), buffer(name, values.data(), count, readable) {
    settlers().push_back([this] { buffer.settle(); });
  }
  Room(const Room&) = delete;
  ~Room() { settlers().pop_back(); }  // rooms go in the opposite order

  static std::vector<std::function<void()>>& settlers();
  operator corrdet::Pointer<T>() { return &buffer; }
  operator corrdet::Pointer<const T>() { return &buffer; }

  std::vector<T> values;
  Buffer<T> buffer;
};

std::vector<std::function<void()>>& all_settlers() {
  static std::vector<std::function<void()>> settlers;
  return settlers;
}

template <typename T>
std::vector<std::function<void()>>& Room<T>::settlers() {
  return all_settlers();
}

// The launches of an operator with several kernels. A barrier is left out in the launch that
// options.threads says.
struct Launcher {
  Options options;

  void operator()(int64_t blocks, int64_t threads, int64_t doubles,
                  const std::function<void()>& kernel) {
    Launch config = configure(options, blocks, threads, doubles * sizeof(double));
    if (launches++ != options.threads) config.skip_barrier = -1;  // `threads` chooses the launch
    emulation::launch(config, kernel);
    for (const auto& settle : all_settlers()) settle();
  }

  int64_t launches = 0;
};

template <typename T, typename target_t>
struct EmulatedSamples {
  EmulatedSamples(Launcher& launch, Buffer<T>& logits, Buffer<target_t>& targets, bool graded,
                  int64_t per_positive)
      : count(logits.size),
        capacity(std::max<int64_t>(per_positive >= 0 ? per_positive : count, 1)),
        kinds("kinds", count),
        info("info", corrdet::kInfoSize, true),
        places("places", capacity),
        scores("scores", 2 * capacity),
        ordinals("ordinals", 2 * capacity) {
    using namespace corrdet;
    const int64_t blocks = ceil_divide(count, kSamplesPerBlock);
    Room<int32_t> counts("counts of blocks", blocks);
    launch(blocks, kSampleThreads, kSampleThreads, [&] {
      classify_kernel<T, target_t>(&logits, &targets, count, graded, kinds, counts, info);
    });
    launch(blocks, kSampleThreads, kSampleThreads, [&] {
      compact_kernel<T>(&logits, kinds, counts, count, capacity, per_positive, scores, ordinals,
                        places, info);
    });
    launch(ceil_divide(capacity, kSortTile), kSampleThreads, 2 * kSortTile,
           [&] { sort_tiles_kernel<T>(scores, ordinals, info); });
    int64_t from = 0;
    for (int64_t width = kSortTile; width < capacity; width *= 2, from = 1 - from) {
      launch(ceil_divide(capacity, kSampleThreads), kSampleThreads, 0,
             [&] { merge_runs_kernel<T>(width, from, capacity, scores, ordinals, info); });
    }
  }

  int64_t count, capacity;
  Room<int8_t> kinds;
  Room<int32_t> info, places;
  Room<T> scores;
  Room<int32_t> ordinals;
};

double fixed_scale(int64_t samples) {
  int bits = 0;
  while (samples >> bits) ++bits;
  return std::ldexp(1.0, std::min(62 - bits, 46));
}

// localization: (positives,), or null with positives -1.
template <typename T>
void step_error(const Options& options, const T* logits, const double* targets, int64_t count,
                int64_t loss, double delta, const double* localization, int64_t positives,
                T* values, T* gradients, T* localization_gradient) {
  using namespace corrdet;
  Launcher launch{options};
  Buffer<T> samples_logits = input("logits", logits, count);
  Buffer<double> samples_targets = input("targets", targets, count);
  const bool sorts = loss == kDeviceRankSort;
  EmulatedSamples<T, double> samples(launch, samples_logits, samples_targets, sorts, positives);
  const int64_t capacity = samples.capacity;
  Room<int32_t> counts("counts", 2 * capacity + 2, true);
  Room<unsigned long long> sums("sums", 2 * capacity + 2, true);
  Room<double> table("table", 4 * capacity + 4);
  Room<double> false_positives("false positives", capacity), shares("shares", capacity);
  Buffer<double> graded = input("localization", localization, std::max<int64_t>(positives, 0));
  Buffer<T> loss_values = output("values", values, 2);
  const int rows = sorts ? 2 : 1;
  Buffer<T> gradient = output("gradient", gradients, rows * count - options.missing);
  Buffer<T> on_localization = output("localization gradient", localization_gradient, graded.size);
  const double scale = fixed_scale(count);
  const int64_t sample_blocks = ceil_divide(count, 1024);
  const int64_t positive_blocks = ceil_divide(capacity, kSampleThreads);
  launch(sample_blocks, kSampleThreads, 0, [&] {
    stretches_kernel<T>(&samples_logits, samples.kinds, count, samples.scores, capacity, delta,
                        scale, counts, sums, samples.info);
  });
  launch(1, kSolveThreads, kSolveThreads, [&] {
    step_solve_kernel<T>(samples.scores, samples.ordinals, capacity, static_cast<int>(loss), delta,
                         scale, &graded, counts, sums, false_positives, shares, table, &loss_values,
                         &on_localization, graded.size, samples.info);
  });
  launch(sample_blocks, kSampleThreads, 0, [&] {
    step_gradient_kernel<T>(&samples_logits, samples.kinds, count, samples.scores, capacity, delta,
                            table, &gradient, rows, samples.info);
  });
  gradient.settle();
  launch(positive_blocks, kSampleThreads, 0, [&] {
    step_positives_kernel<T>(samples.ordinals, samples.places, capacity, false_positives, shares,
                             &gradient, samples.info);
  });
  if (!sorts) return;
  Room<double> errors("errors", capacity), missorted("missorted", capacity);
  launch(positive_blocks, kSampleThreads, 0, [&] {
    gather_targets_kernel<double>(&samples_targets, samples.places, false_positives, samples.info);
  });
  launch(capacity, kSampleThreads, kSampleThreads, [&] {
    sorting_errors_kernel<T>(samples.scores, samples.ordinals, capacity, delta, false_positives,
                             errors, missorted, samples.info);
  });
  gradient.settle();
  loss_values.settle();
  launch(capacity, kSampleThreads, kSampleThreads, [&] {
    sorting_gradient_kernel<T>(samples.scores, samples.ordinals, samples.places, capacity, delta,
                               false_positives, errors, missorted, Pointer<T>(&gradient) + count,
                               &loss_values, samples.info);
  });
}

// flags: 1 cross entropy, 2 balance by negatives, 4 weighted by IoU. most_cells: 0 for pairs one by
// one.
template <typename T>
void smooth_error(const Options& options, const T* logits, const double* targets, int64_t count,
                  int64_t flags, double lam, double delta, const double* ious, int64_t positives,
                  int64_t most_cells, T* value, T* gradients) {
  using namespace corrdet;
  constexpr int64_t terms = Series<T>::degree + 1;
  Launcher launch{options};
  Buffer<T> samples_logits = input("logits", logits, count);
  Buffer<double> samples_targets = input("targets", targets, count);
  EmulatedSamples<T, double> samples(launch, samples_logits, samples_targets, false, positives);
  const int64_t capacity = samples.capacity, most_bins = most_cells + capacity + 1;
  const bool paired = positives >= 0;
  Room<unsigned long long> moments("moments", most_bins * terms, true);
  Room<double> polynomials("polynomials", most_bins * terms), totals("totals", most_cells * terms);
  Room<double> counts("counts", most_cells + 1), distances("distances", most_cells + 1);
  const int64_t blocks = std::min(ceil_divide(count, 1024), options.grid);
  Room<double> beyond("beyond", 2 * blocks);
  Room<double> ranks("ranks", capacity), errors("errors", capacity), losses("losses", capacity);
  Room<double> negatives("negatives", capacity), saturated("saturated", capacity + 1);
  Buffer<double> graded = input("ious", ious, std::max<int64_t>(positives, 0));
  Buffer<T> loss_value = output("value", value, 1);
  Buffer<T> gradient = output("gradient", gradients, count - options.missing);
  const double scale = fixed_scale(count);
  launch(blocks, kSampleThreads, kSampleThreads, [&] {
    moments_kernel<T>(&samples_logits, samples.kinds, count, samples.scores, capacity, lam, delta,
                      most_cells, most_bins, scale, moments, beyond, samples.info);
  });
  launch(1, kSmoothSolveThreads, kSmoothSolveThreads, [&] {
    cell_totals_kernel<T>(samples.scores, capacity, lam, delta, most_cells, most_bins, scale,
                          moments, beyond, blocks, totals, counts, distances, samples.info);
  });
  launch(capacity, kPairThreads, kPairThreads, [&] {
    smooth_sums_kernel<T>(&samples_logits, samples.kinds, count, samples.scores, samples.ordinals,
                          capacity, lam, delta, most_cells, most_bins, scale, moments, totals,
                          counts, distances, paired, &graded, ranks, errors, losses, negatives,
                          samples.info);
  });
  launch(1, kSmoothSolveThreads, kSmoothSolveThreads, [&] {
    smooth_solve_kernel<T>(samples.ordinals, capacity, flags & 1, flags & 2, paired, flags & 4,
                           &graded, ranks, errors, losses, negatives, saturated, &loss_value,
                           samples.info);
  });
  launch(std::max<int64_t>(most_cells, 1), kPairThreads, kPairThreads, [&] {
    polynomials_kernel<T>(samples.scores, capacity, lam, delta, most_cells, most_bins, ranks,
                          saturated, polynomials, samples.info);
  });
  launch(blocks, kSampleThreads, 0, [&] {
    smooth_gradient_kernel<T>(&samples_logits, samples.kinds, count, samples.scores, capacity, lam,
                              delta, most_cells, most_bins, ranks, saturated, polynomials,
                              &gradient, samples.info);
  });
  gradient.settle();
  launch(capacity, kPairThreads, kPairThreads, [&] {
    smooth_positives_kernel<T>(samples.scores, samples.ordinals, samples.places, capacity, lam,
                               delta, paired, &graded, ranks, errors, &gradient, samples.info);
  });
}

// Kernels with a fault. Each reverses the block's values through shared memory.
enum class Fault {
  kNone,
  kMissingBarrier,
  kOutOfBounds,
  kUninitialized,
  kDivergence,
  kBlocks,
  kAtomic
};

void faulty_kernel(Fault fault, corrdet::Pointer<const float> values,
                   corrdet::Pointer<float> result) {
  CORRDET_SHARED(float, shared);
  const int64_t thread = threadIdx.x;
  const int64_t mirrored = blockDim.x - 1 - thread;
  if (fault != Fault::kUninitialized || thread != 3) shared[thread] = values[thread];
  if (fault == Fault::kDivergence && thread == 3) return;
  if (fault != Fault::kMissingBarrier) __syncthreads();
  const int64_t place = (fault == Fault::kBlocks ? 0 : blockIdx.x * blockDim.x) + thread;
  if (fault == Fault::kAtomic) {
    CORRDET_ATOMIC_ADD(shared, 0, 1.0f);
    if (thread == 3) __syncthreads();
  }
  result[place + (fault == Fault::kOutOfBounds)] = shared[mirrored];
}

}  // namespace

extern "C" {

#define CORRDET_EXPORT(suffix, T)                                                                 \
  const char* pairwise_iou_##suffix(const Options* options, const T* boxes1, int64_t n,           \
                                    const T* boxes2, int64_t m, int64_t kind, T* result) {        \
    return report([&] { pairwise_iou(*options, boxes1, n, boxes2, m, kind, result); });           \
  }                                                                                               \
  const char* pairwise_iou_backward_##suffix(                                                     \
      const Options* options, const T* grad, int64_t transposed, const T* boxes1, int64_t n,      \
      const T* boxes2, int64_t m, int64_t kind, T* result) {                                      \
    return report([&] {                                                                           \
      pairwise_iou_backward(*options, grad, transposed, boxes1, n, boxes2, m, kind, result);      \
    });                                                                                           \
  }                                                                                               \
  const char* elementwise_iou_##suffix(const Options* options, const T* grad, const T* boxes1,    \
                                       const T* boxes2, int64_t n, int64_t kind, T* result,       \
                                       T* result1, T* result2) {                                  \
    return report([&] {                                                                           \
      elementwise_iou(*options, grad, boxes1, boxes2, n, kind, result, result1, result2);         \
    });                                                                                           \
  }                                                                                               \
  const char* soft_rank_##suffix(const Options* options, const T* sorted,                         \
                                 const int64_t* permutation, int64_t rows, int64_t n,             \
                                 double strength, T* ranks, int64_t* pools) {                     \
    return report(                                                                                \
        [&] { soft_rank(*options, sorted, permutation, rows, n, strength, ranks, pools); });      \
  }                                                                                               \
  const char* soft_rank_backward_##suffix(const Options* options, const T* grad,                  \
                                          const int64_t* permutation, const int64_t* pools,       \
                                          int64_t rows, int64_t n, double strength, T* result) {  \
    return report([&] {                                                                           \
      soft_rank_backward(*options, grad, permutation, pools, rows, n, strength, result);          \
    });                                                                                           \
  }                                                                                               \
  const char* step_error_##suffix(const Options* options, const T* logits, const double* targets, \
                                  int64_t count, int64_t loss, double delta,                      \
                                  const double* localization, int64_t positives, T* values,       \
                                  T* gradients, T* localization_gradient) {                       \
    return report([&] {                                                                           \
      step_error(*options, logits, targets, count, loss, delta, localization, positives, values,  \
                 gradients, localization_gradient);                                               \
    });                                                                                           \
  }                                                                                               \
  const char* smooth_error_##suffix(                                                              \
      const Options* options, const T* logits, const double* targets, int64_t count,              \
      int64_t flags, double lam, double delta, const double* ious, int64_t positives,             \
      int64_t most_cells, T* value, T* gradients) {                                               \
    return report([&] {                                                                           \
      smooth_error(*options, logits, targets, count, flags, lam, delta, ious, positives,          \
                   most_cells, value, gradients);                                                 \
    });                                                                                           \
  }

CORRDET_EXPORT(float32, float)
CORRDET_EXPORT(float64, double)

const char* faulty(int64_t fault, int64_t order, const float* values, float* result) {
  return report([&] {
    const int64_t threads = 8, blocks = 2;
    Buffer<float> source = input("values", values, threads);
    Buffer<float> target = output("result", result, threads * blocks);
    const Options options{order, blocks, threads, -1, 0};
    emulation::launch(configure(options, blocks, threads, threads * sizeof(float)),
                      [&] { faulty_kernel(static_cast<Fault>(fault), &source, &target); });
  });
}

}  // extern "C"
