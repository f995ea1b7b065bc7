// What every launch needs. Host side of .cu files only.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

namespace corrdet {

// Blocks for `items` pieces of work. Kernels step by gridDim.x over what a grid cannot hold.
inline unsigned int grid_size(int64_t items) {
  return static_cast<unsigned int>(std::min<int64_t>(items, 2147483647));
}

inline int64_t ceil_divide(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace corrdet
