// Device code that reads the samples of a ranking loss: their labels, and the positives in order of
// their logits. How many positives there are is known on the device alone; buffers for them have
// room for `capacity`.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"

namespace corrdet {

constexpr int kSampleThreads = 256;
// Samples of one block, a run of neighbours per thread, so that positives keep their order.
constexpr int kSamplesPerThread = 16;
constexpr int64_t kSamplesPerBlock = kSampleThreads * kSamplesPerThread;
// Positives that one block sorts.
constexpr int64_t kSortTile = 512;

constexpr int8_t kDevicePositive = 1, kDeviceNegative = 0, kDeviceIgnored = -1;

// What kernels find out: info[kPositives], info[kFaults], not 0 where the result is undefined, and
// info[kFar], not 0 where a logit is far from 0.
enum Info { kPositives = 0, kFaults = 1, kFar = 2, kInfoSize = 3 };

// x - x is 0 for finite x alone.
template <typename T>
CORRDET_INLINE bool is_finite(T x) {
  return x - x == T(0);
}

// labels: (S,). counts: positives per block. far: the largest logit that is not far from 0.
template <typename T, typename target_t>
__global__ void __launch_bounds__(kSampleThreads)
    classify_kernel(Pointer<const T> logits, Pointer<const target_t> targets, int64_t count,
                    bool soft, double far, Pointer<int8_t> labels, Pointer<int32_t> counts,
                    Pointer<int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t blocks = (count + kSamplesPerBlock - 1) / kSamplesPerBlock;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t end = (block + 1) * kSamplesPerBlock;
    double positives = 0.0;
    int32_t faults = 0, far_logits = 0;
    for (int64_t i = block * kSamplesPerBlock + threadIdx.x; i < count && i < end;
         i += kSampleThreads) {
      const target_t target = targets[i];
      int8_t label = kDeviceIgnored;
      if (target == target_t(0)) {
        label = kDeviceNegative;
      } else if (target == target_t(1) || (soft && target > target_t(0) && target < target_t(1))) {
        label = kDevicePositive;
        positives += 1.0;
      } else if (!(target + target_t(1) == target_t(0))) {
        ++faults;
      }
      if (label != kDeviceIgnored) {
        const T logit = logits[i];
        if (!is_finite<T>(logit)) ++faults;
        if (static_cast<double>(logit) > far || static_cast<double>(logit) < -far) ++far_logits;
      }
      labels[i] = label;
    }
    const double total = block_reduce(positives, shared, Add());
    if (threadIdx.x == 0) counts[block] = static_cast<int32_t>(total);
    if (faults > 0) CORRDET_ATOMIC_ADD(info, kFaults, faults);
    if (far_logits > 0) CORRDET_ATOMIC_ADD(info, kFar, far_logits);
  }
}

// scores, ordinals: the positives' logits and their numbers 0, 1, ... in the order of the samples;
// indices: theirs among the samples. `expected`: how many the caller has values for, or -1.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    compact_kernel(Pointer<const T> logits, Pointer<const int8_t> labels,
                   Pointer<const int32_t> counts, int64_t count, int64_t capacity, int64_t expected,
                   Pointer<T> scores, Pointer<int32_t> ordinals, Pointer<int32_t> indices,
                   Pointer<int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t blocks = (count + kSamplesPerBlock - 1) / kSamplesPerBlock;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    double before = 0.0;
    for (int64_t i = threadIdx.x; i < block; i += kSampleThreads) before += int32_t(counts[i]);
    before = block_reduce(before, shared, Add());
    const int64_t begin = block * kSamplesPerBlock + threadIdx.x * kSamplesPerThread;
    double own = 0.0;
    for (int64_t i = begin; i < count && i < begin + kSamplesPerThread; ++i) {
      own += labels[i] == kDevicePositive ? 1.0 : 0.0;
    }
    int64_t slot = static_cast<int64_t>(before + block_exclusive_scan(own, shared, Add()));
    for (int64_t i = begin; i < count && i < begin + kSamplesPerThread; ++i) {
      if (labels[i] != kDevicePositive) continue;
      if (slot < capacity) {
        scores[slot] = logits[i];
        ordinals[slot] = static_cast<int32_t>(slot);
        indices[slot] = static_cast<int32_t>(i);
      }
      ++slot;
    }
    if (block == blocks - 1 && threadIdx.x == kSampleThreads - 1) {
      info[kPositives] = static_cast<int32_t>(slot < capacity ? slot : capacity);
      if (expected >= 0 && slot != expected) CORRDET_ATOMIC_ADD(info, kFaults, 1);
    }
  }
}

// The buffer, 0 or 1, that the sorted positives are in.
CORRDET_INLINE int64_t sorted_buffer(int64_t positives) {
  int64_t passes = 0;
  for (int64_t width = kSortTile; width < positives; width *= 2) ++passes;
  return passes & 1;
}

// Sorts each tile of positives by score, ties by ordinal, in place. 8 * kSortTile + 4 * kSortTile
// bytes of shared memory would do; two doubles each keep it simple.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    sort_tiles_kernel(Pointer<T> scores, Pointer<int32_t> ordinals, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kSortTile; tile < count;
       tile += gridDim.x * kSortTile) {
    const int64_t size = count - tile < kSortTile ? count - tile : kSortTile;
    for (int64_t i = threadIdx.x; i < size; i += kSampleThreads) {
      shared[i] = static_cast<double>(T(scores[tile + i]));
      shared[kSortTile + i] = static_cast<double>(int32_t(ordinals[tile + i]));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kSampleThreads) {
      const double score = shared[i];
      int64_t rank = 0;
      for (int64_t k = 0; k < size; ++k) {
        const double other = shared[k];
        rank += other < score || (other == score && k < i);
      }
      scores[tile + rank] = static_cast<T>(score);
      ordinals[tile + rank] = static_cast<int32_t>(double(shared[kSortTile + i]));
    }
    __syncthreads();
  }
}

// Merges neighbouring sorted runs of `width` positives, from one half of the buffers to the other.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads)
    merge_runs_kernel(int64_t width, int64_t from, int64_t capacity, Pointer<T> scores,
                      Pointer<int32_t> ordinals, Pointer<const int32_t> info) {
  const int64_t count = info[kPositives];
  if (width >= count) return;
  const int64_t source = from * capacity, target = (1 - from) * capacity;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    const T score = scores[source + i];
    const int64_t run = i / width;
    const bool left = run % 2 == 0;
    const int64_t pair = (run - (left ? 0 : 1)) * width;
    int64_t begin = left ? pair + width : pair;
    int64_t end = begin + width;
    if (begin > count) begin = count;
    if (end > count) end = count;
    const int64_t first = begin;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      const T other = scores[source + middle];
      if (left ? other < score : other <= score) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    const int64_t position = pair + (i - run * width) + (begin - first);
    scores[target + position] = score;
    ordinals[target + position] = int32_t(ordinals[source + i]);
  }
}

// per_positive[k]: the target of the positive with ordinal k.
template <typename target_t>
__global__ void __launch_bounds__(kSampleThreads)
    gather_targets_kernel(Pointer<const target_t> targets, Pointer<const int32_t> indices,
                          Pointer<double> per_positive, Pointer<const int32_t> info) {
  const int64_t count = info[kPositives];
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kSampleThreads + threadIdx.x; k < count;
       k += static_cast<int64_t>(gridDim.x) * kSampleThreads) {
    per_positive[k] = static_cast<double>(target_t(targets[int32_t(indices[k])]));
  }
}

// Positives in ascending order of their logits, or, where these are `far` from 0, at positions that
// take their place.
template <typename T>
struct SortedScores {
  Pointer<const T> scores;
  int64_t count;
  Pointer<const double> positions = nullptr;
  bool far = false;

  CORRDET_INLINE double operator[](int64_t u) const {
    return far ? double(positions[u]) : static_cast<double>(T(scores[u]));
  }

  CORRDET_INLINE SortedScores given() const { return {scores, count}; }

  // The number of u with s_u + shift below, or up to, `value`.
  template <bool or_equal>
  __device__ int64_t number_below(double shift, double value) const {
    int64_t begin = 0, end = count;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      const double knot = (*this)[middle] + shift;
      if (or_equal ? knot <= value : knot < value) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }

  // The number of u with s_u - value below, or up to, `difference`: exact also where s_u + shift
  // would be rounded.
  template <bool or_equal>
  __device__ int64_t number_nearer(double difference, double value) const {
    int64_t begin = 0, end = count;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      const double distance = (*this)[middle] - value;
      if (or_equal ? distance <= difference : distance < difference) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }
};

}  // namespace corrdet
