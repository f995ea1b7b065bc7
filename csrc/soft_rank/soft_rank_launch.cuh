// What soft_rank launches, see common/launch.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/launch.h"
#include "soft_rank/soft_rank_kernel.cuh"

namespace corrdet {

// Enough threads for a row of n values: about 8 values each, whole warps.
inline int64_t soft_rank_threads(int64_t n, int64_t most) {
  return std::min(ceil_divide(ceil_divide(n, 8), 32) * 32, most);
}

// sorted, permutation: (rows, n), each row ascending, and where its values came from. threads: of a
// block, or 0 for as many as a row is worth. ranks, pools: (rows, n).
template <typename T, typename Device>
void launch_soft_rank(Device& device, Pointer<const T> sorted, Pointer<const int64_t> permutation,
                      int64_t rows, int64_t n, double strength, int64_t threads, Pointer<T> ranks,
                      Pointer<int64_t> pools) {
  if (threads == 0) threads = soft_rank_threads(n, kSoftRankForwardThreads);
  const Pointer<Pool> workspace = device.template empty<Pool>("workspace", rows * n);
  device.launch({rows, threads, threads * kSoftRankForwardShared}, soft_rank_forward_kernel<T>,
                sorted, permutation, rows, n, strength, workspace, ranks, pools);
}

template <typename T, typename Device>
void launch_soft_rank_backward(Device& device, Pointer<const T> grad,
                               Pointer<const int64_t> permutation, Pointer<const int64_t> pools,
                               int64_t rows, int64_t n, double strength, int64_t threads,
                               Pointer<T> output) {
  if (threads == 0) threads = soft_rank_threads(n, kSoftRankBackwardThreads);
  device.launch({rows, threads, threads * kSoftRankBackwardShared}, soft_rank_backward_kernel<T>,
                grad, permutation, pools, rows, n, strength, output);
}

CORRDET_EMULATED(soft_rank, launch_soft_rank<T, Device>);
CORRDET_EMULATED(soft_rank_backward, launch_soft_rank_backward<T, Device>);

}  // namespace corrdet
