// Sizes of launches. What an operator launches, in which order, on how many blocks and with what
// memory, stands in <op>_launch.cuh, as functions of a Device: on a GPU a CudaDevice
// (common/cuda_device.h), in the tests an emulated one (tests/ops/emulation/emulated_device.h), so
// that what is emulated is what is launched. A Device has
//
//   Pointer<T> empty<T>(name, count)            memory that lives as long as the Device
//   Pointer<T> zeros<T>(name, count)
//   Pointer<U> reuse<U>(name, pointer, count)   the memory of `pointer`, which is not needed any
//   more int64_t available_blocks(blocks)            how many of them a grid will have void
//   launch(Grid, kernel, arguments...)
//
// CORRDET_EMULATED at the end of such a file names its functions to the tests.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/device.h"

namespace corrdet {

struct Grid {
  int64_t blocks;  // wanted: kernels step by gridDim.x over what a grid cannot hold
  int64_t threads;
  int64_t shared_bytes = 0;
};

inline int64_t ceil_divide(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace corrdet
