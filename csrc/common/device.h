// The few words that let one header compile as CUDA, as plain C++ and under the host emulation of
// the tests (tests/ops/emulation/cuda_emulation.h), which defines them itself.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CORRDET_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define CORRDET_INLINE inline __attribute__((always_inline))
#else
#define CORRDET_INLINE inline
#endif

#if defined(__CUDACC__)
namespace corrdet {
// Kernels name their pointers with this, so that the emulation can check each access.
template <typename T>
using Pointer = T*;
}  // namespace corrdet

// Adds to an integer that other threads may be adding to. Integers alone: their sums do not depend
// on the order of additions.
#define CORRDET_ATOMIC_ADD(pointer, index, value) atomicAdd(&(pointer)[index], value)

// Declares `name` as the block's dynamic shared memory, an array of T.
#define CORRDET_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char corrdet_shared[]; \
  T* const name = reinterpret_cast<T*>(corrdet_shared)

// Names a function template of T and Device to the emulation, which calls it for float and double.
#define CORRDET_EMULATED(name, ...) static_assert(true)
#endif
