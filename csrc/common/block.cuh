// Sums and scans over the threads of a block. `shared` holds one double per thread, and may be used
// again after the call. Every thread of the block has to take part.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace corrdet {

struct Add {
  CORRDET_INLINE double operator()(double a, double b) const { return a + b; }
  static constexpr double identity = 0.0;
};

struct Maximum {  // of numbers that are not negative
  CORRDET_INLINE double operator()(double a, double b) const { return a > b ? a : b; }
  static constexpr double identity = 0.0;
};

// The values of all threads combined, in an order that is the same on every run.
template <typename Combine, typename Shared>
__device__ double block_reduce(double value, Shared shared, Combine combine) {
  const int64_t thread = threadIdx.x;
  shared[thread] = value;
  int64_t width = 1;
  while (width < blockDim.x) width *= 2;
  for (width /= 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width && thread + width < blockDim.x) {
      shared[thread] = combine(double(shared[thread]), double(shared[thread + width]));
    }
  }
  __syncthreads();
  const double total = shared[0];
  __syncthreads();
  return total;
}

// The values of the threads before this one combined.
template <typename Combine, typename Shared>
__device__ double block_exclusive_scan(double value, Shared shared, Combine combine) {
  const int64_t thread = threadIdx.x;
  double sum = value;
  shared[thread] = sum;
  for (int64_t width = 1; width < blockDim.x; width *= 2) {
    __syncthreads();
    const double other = thread >= width ? double(shared[thread - width]) : Combine::identity;
    __syncthreads();
    sum = combine(other, sum);
    shared[thread] = sum;
  }
  __syncthreads();
  const double result = thread > 0 ? double(shared[thread - 1]) : Combine::identity;
  __syncthreads();
  return result;
}

// Calls store(i, load(0) + ... + load(i)) for all i < count, each thread on its own stretch of i.
template <typename Combine, typename Shared, typename Load, typename Store>
__device__ void block_scan(int64_t count, Shared shared, Combine combine, Load load, Store store) {
  const int64_t threads = blockDim.x;
  const int64_t stretch = (count + threads - 1) / threads;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * stretch;
  const int64_t begin = first < count ? first : count;
  const int64_t end = begin + stretch < count ? begin + stretch : count;
  double sum = Combine::identity;
  for (int64_t i = begin; i < end; ++i) sum = combine(sum, load(i));
  sum = block_exclusive_scan(sum, shared, combine);
  for (int64_t i = begin; i < end; ++i) {
    sum = combine(sum, load(i));
    store(i, sum);
  }
  __syncthreads();
}

}  // namespace corrdet
