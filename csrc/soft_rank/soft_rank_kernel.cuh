// Device code of the soft rank. It compiles under nvcc and under tests/ops/emulation, which
// includes its own definitions of the CUDA words first.
//
// One block works on one row. Each thread runs pool adjacent violators on its own stretch of sorted
// positions; the results are greatest convex minorants of stretches of the prefix sums, and
// neighbours merge pairwise, in log2(threads) steps, by pooling across their border. A merge is
// done by one thread: its cost is the number of pools that vanish, at worst all of them.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "soft_rank/pool.h"

namespace corrdet {

// With more, a thread has too few registers for what it holds.
constexpr int kSoftRankForwardThreads = 768;
constexpr int kSoftRankBackwardThreads = 512;

// Bytes of shared memory per thread.
constexpr int kSoftRankForwardShared = 2 * sizeof(int64_t);
constexpr int kSoftRankBackwardShared = 2 * sizeof(double);

// The pools of thread u lie in pools[u * stretch + first[u]] up to, not including, pools[u *
// stretch + last[u]]. Merges the pools of threads [begin, border) with those of [border, end), both
// already merged, the first of them not empty. A pool stays where its leftmost part was.
template <typename Pools, typename Indices>
__device__ void merge_pools(Pools pools, Indices first, Indices last, int64_t stretch,
                            int64_t begin, int64_t border, int64_t end, double strength) {
  int64_t left = border - 1;
  while (first[left] == last[left]) --left;
  int64_t right = border;
  Pool current = pools[left * stretch + last[left] - 1];
  bool search = true;
  int64_t previous_owner = -1;
  while (true) {
    while (right < end && first[right] == last[right]) ++right;
    if (right < end) {
      const Pool next = pools[right * stretch + first[right]];
      if (must_pool(current, next, strength)) {
        current = pooled(current, next);
        first[right] = first[right] + 1;
        continue;
      }
    }
    if (search) {
      previous_owner = left;
      if (last[left] - first[left] == 1) {
        do {
          --previous_owner;
        } while (previous_owner >= begin && first[previous_owner] == last[previous_owner]);
      }
      search = false;
    }
    if (previous_owner < begin) break;
    const int64_t slot = last[previous_owner] - (previous_owner == left ? 2 : 1);
    const Pool previous = pools[previous_owner * stretch + slot];
    if (!must_pool(previous, current, strength)) break;
    current = pooled(previous, current);
    last[left] = last[left] - 1;
    left = previous_owner;
    search = true;
  }
  pools[left * stretch + last[left] - 1] = current;
}

// Pools adjacent violators among the sorted positions [begin, end), into pools[begin ...]; returns
// how many pools that leaves.
template <typename Sorted, typename Pools>
__device__ int64_t pool_stretch(Sorted sorted, Pools pools, int64_t begin, int64_t end,
                                double strength) {
  if (begin >= end) return 0;
  int64_t size = 0;
  Pool top = {begin, 1, static_cast<double>(sorted[begin]), 0.0};
  for (int64_t i = begin + 1; i < end; ++i) {
    Pool next = {i, 1, static_cast<double>(sorted[i]), 0.0};
    if (!must_pool(top, next, strength)) {
      pools[begin + size] = top;
      ++size;
      top = next;
      continue;
    }
    top = pooled(top, next);
    while (size > 0) {
      const Pool below = pools[begin + size - 1];
      if (!must_pool(below, top, strength)) break;
      top = pooled(below, top);
      --size;
    }
  }
  pools[begin + size] = top;
  return size + 1;
}

// sorted, permutation: (rows, n), each row ascending and the positions its values came from.
// workspace: (rows, n). ranks: (rows, n) in the order of the values; pool_starts: (rows, n) in
// sorted order, -1 for a row with a value that is not finite, whose ranks are NaN.
template <typename T>
__global__ void __launch_bounds__(kSoftRankForwardThreads)
    soft_rank_forward_kernel(Pointer<const T> all_sorted, Pointer<const int64_t> all_permutation,
                             int64_t rows, int64_t n, double strength, Pointer<Pool> workspace,
                             Pointer<T> all_ranks, Pointer<int64_t> all_pool_starts) {
  CORRDET_SHARED(int64_t, shared);
  const int64_t threads = blockDim.x;
  const int64_t thread = threadIdx.x;
  const auto first = shared;
  const auto last = shared + threads;
  const int64_t stretch = (n + threads - 1) / threads;
  const int64_t begin = thread * stretch < n ? thread * stretch : n;
  const int64_t end = begin + stretch < n ? begin + stretch : n;

  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const auto sorted = all_sorted + row * n;
    const auto permutation = all_permutation + row * n;
    const auto pools = workspace + row * n;
    const auto ranks = all_ranks + row * n;
    const auto pool_starts = all_pool_starts + row * n;

    // The sort puts -inf first, and inf and NaN last. x - x is 0 for finite x alone.
    const T smallest = sorted[0];
    const T largest = sorted[n - 1];
    if (!(smallest - smallest == T(0)) || !(largest - largest == T(0))) {
      for (int64_t i = begin; i < end; ++i) {
        ranks[permutation[i]] = smallest - smallest + (largest - largest);  // NaN
        pool_starts[i] = -1;
      }
      continue;  // the same decision in the whole block
    }

    // In the stretch's own part of the workspace.
    const int64_t size = pool_stretch(sorted, pools, begin, end, strength);
    first[thread] = 0;
    last[thread] = size;

    for (int64_t width = 1; width < threads; width *= 2) {
      __syncthreads();
      const int64_t border = thread + width;
      if (thread % (2 * width) == 0 && border * stretch < n) {
        const int64_t stop = border + width < threads ? border + width : threads;
        merge_pools(pools, first, last, stretch, thread, border, stop, strength);
      }
    }
    __syncthreads();

    if (begin < end) {
      // The first positions may be in a pool that began in an earlier stretch.
      int64_t next = first[thread];
      const int64_t stop = last[thread];
      Pool pool;
      if (next < stop && Pool(pools[begin + next]).start == begin) {
        pool = pools[begin + next];
        ++next;
      } else {
        int64_t owner = thread - 1;
        while (first[owner] == last[owner]) --owner;
        pool = pools[owner * stretch + last[owner] - 1];
      }
      for (int64_t i = begin; i < end; ++i) {
        if (i == pool.start + pool.count) {
          pool = pools[begin + next];
          ++next;
        }
        ranks[permutation[i]] =
            static_cast<T>(rank_in_pool(pool, static_cast<double>(sorted[i]), strength));
        pool_starts[i] = pool.start;
      }
    }
    __syncthreads();  // before the next row overwrites first and last
  }
}

// The gradients of the sorted positions [begin, end). head_mean: the mean of the gradients over the
// pool that began before; last_mean: over the pool that may go on behind.
template <typename Upstream, typename Indices, typename T>
__device__ void spread_stretch(Upstream upstream, Indices permutation, Indices pool_starts,
                               int64_t begin, int64_t end, double strength, double head_mean,
                               double last_mean, Pointer<T> gradients) {
  for (int64_t i = begin; i < end;) {
    const int64_t start = pool_starts[i];
    int64_t stop = i;
    double sum = 0.0;
    while (stop < end && pool_starts[stop] == start) {
      sum += static_cast<double>(upstream[permutation[stop]]);
      ++stop;
    }
    double mean = last_mean;
    if (start < begin) {
      mean = head_mean;
    } else if (stop < end) {
      mean = sum / static_cast<double>(stop - i);
    }
    for (; i < stop; ++i) {
      const int64_t position = permutation[i];
      gradients[position] =
          static_cast<T>((static_cast<double>(upstream[position]) - mean) / strength);
    }
  }
}

// Within a pool the Jacobian of the ranks is (identity - 1 / count) / strength, between pools it is
// 0 (Blondel et al. 2020, Proposition 4). permutation and pool_starts as the forward kernel left
// them.
template <typename T>
__global__ void __launch_bounds__(kSoftRankBackwardThreads, 1)
    soft_rank_backward_kernel(Pointer<const T> all_upstream, Pointer<const int64_t> all_permutation,
                              Pointer<const int64_t> all_pool_starts, int64_t rows, int64_t n,
                              double strength, Pointer<T> all_gradients) {
  CORRDET_SHARED(double, shared);
  const int64_t threads = blockDim.x;
  const int64_t thread = threadIdx.x;
  // Of the part of an earlier stretch's last pool that lies in this stretch: sum, later the mean
  // over the whole of that pool, and count.
  const auto head_sum = shared;
  const auto head_count = shared + threads;
  const int64_t stretch = (n + threads - 1) / threads;
  const int64_t begin = thread * stretch < n ? thread * stretch : n;
  const int64_t end = begin + stretch < n ? begin + stretch : n;

  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const auto upstream = all_upstream + row * n;
    const auto permutation = all_permutation + row * n;
    const auto pool_starts = all_pool_starts + row * n;
    const auto gradients = all_gradients + row * n;
    if (pool_starts[0] < 0) {
      for (int64_t i = begin; i < end; ++i) {
        gradients[permutation[i]] = static_cast<T>(nan(""));
      }
      continue;  // the same decision in the whole block
    }

    double sum = 0.0, count = 0.0;
    int64_t pool = -1;
    head_sum[thread] = 0.0;
    head_count[thread] = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = pool_starts[i];
      if (start != pool) {
        if (pool >= 0 && pool < begin) {
          head_sum[thread] = sum;
          head_count[thread] = count;
        }
        pool = start;
        sum = 0.0;
        count = 0.0;
      }
      sum += static_cast<double>(upstream[permutation[i]]);
      count += 1.0;
    }
    if (pool < begin) {
      head_sum[thread] = sum;
      head_count[thread] = count;
    }
    __syncthreads();
    // Of the last pool, if it begins in this stretch. No other thread touches the heads that it
    // continues in.
    double last_mean = 0.0;
    if (pool >= begin && begin < end) {
      for (int64_t later = thread + 1; later * stretch < n && pool_starts[later * stretch] == pool;
           ++later) {
        sum += head_sum[later];
        count += head_count[later];
      }
      last_mean = sum / count;
      for (int64_t later = thread + 1; later * stretch < n && pool_starts[later * stretch] == pool;
           ++later) {
        head_sum[later] = last_mean;
      }
    }
    __syncthreads();

    spread_stretch(upstream, permutation, pool_starts, begin, end, strength,
                   static_cast<double>(head_sum[thread]), last_mean, gradients);
    // The next row's heads need no barrier: each is overwritten by the thread that read it last.
  }
}

}  // namespace corrdet
