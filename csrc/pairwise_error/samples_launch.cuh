// What step_error and smooth_error launch to read samples, see common/launch.h.
//
// Nothing waits for the device: how many positives there are stays on it, and launches are sized by
// what is known of the shapes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/launch.h"
#include "pairwise_error/samples_kernel.cuh"

namespace corrdet {

inline int64_t blocks_for(int64_t items, int64_t most) {
  return std::clamp<int64_t>(items, 1, most);
}

// Blocks for kernels that step over samples; a function of the shapes, so that sums over blocks
// are the same on every device.
inline int64_t sample_blocks(int64_t samples) {
  return blocks_for(ceil_divide(samples, 1024), 1024);
}

// Blocks for kernels with a thread per positive.
inline int64_t positive_blocks(int64_t capacity) {
  return blocks_for(ceil_divide(capacity, kSampleThreads), 512);
}

// Units of the sums over samples: as fine as 63 bits allow for all samples together.
inline double fixed_scale(int64_t samples) {
  int bits = 0;
  while (samples >> bits) ++bits;
  return std::ldexp(1.0, std::min(62 - bits, 46));
}

// Samples and sorted positives on the device.
template <typename T>
struct DeviceSamples {
  int64_t count;     // of the samples
  int64_t capacity;  // positives that there is room for
  Pointer<const T> logits;
  Pointer<int8_t> labels;
  Pointer<int32_t> info, indices;
  Pointer<T> scores;          // two buffers of `capacity`, see sorted_buffer
  Pointer<int32_t> ordinals;  // two buffers
};

// expected: the number of positives where the caller has values for each, or -1. far: the largest
// logit that is not far from 0.
template <typename T, typename target_t, typename Device>
DeviceSamples<T> launch_samples(Device& device, Pointer<const T> logits,
                                Pointer<const target_t> targets, int64_t count, bool soft,
                                int64_t expected, double far) {
  const int64_t capacity = std::max<int64_t>(expected >= 0 ? expected : count, 1);
  const DeviceSamples<T> samples = {count,
                                    capacity,
                                    logits,
                                    device.template empty<int8_t>("labels", count),
                                    device.template zeros<int32_t>("info", kInfoSize),
                                    device.template empty<int32_t>("indices", capacity),
                                    device.template empty<T>("scores", 2 * capacity),
                                    device.template empty<int32_t>("ordinals", 2 * capacity)};
  const int64_t blocks = ceil_divide(count, kSamplesPerBlock);
  const Pointer<int32_t> counts = device.template empty<int32_t>("counts of blocks", blocks);
  constexpr int64_t shared_bytes = kSampleThreads * sizeof(double);
  device.launch({blocks, kSampleThreads, shared_bytes}, classify_kernel<T, target_t>, logits,
                targets, count, soft, far, samples.labels, counts, samples.info);
  device.launch({blocks, kSampleThreads, shared_bytes}, compact_kernel<T>, logits, samples.labels,
                counts, count, capacity, expected, samples.scores, samples.ordinals,
                samples.indices, samples.info);
  device.launch({blocks_for(ceil_divide(capacity, kSortTile), 512), kSampleThreads,
                 2 * kSortTile * static_cast<int64_t>(sizeof(double))},
                sort_tiles_kernel<T>, samples.scores, samples.ordinals, samples.info);
  int64_t from = 0;
  for (int64_t width = kSortTile; width < capacity; width *= 2, from = 1 - from) {
    device.launch({positive_blocks(capacity), kSampleThreads}, merge_runs_kernel<T>, width, from,
                  capacity, samples.scores, samples.ordinals, samples.info);
  }
  return samples;
}

}  // namespace corrdet
