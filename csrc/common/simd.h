// Function multiversioning: the loader picks the AVX2 copy of a loop where the processor has it, so
// that one binary serves every x86-64 machine. AVX2 without FMA on purpose: a fused multiply-add
// rounds differently, and IoU(a, b) would no longer equal IoU(b, a) bit for bit. GCC vectorizes
// comparisons only where they may raise a floating-point exception flag, which nobody reads here,
// in another order; no result changes.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define CORRDET_SIMD \
  __attribute__((target_clones("avx2", "default"), optimize("O3", "no-trapping-math")))
#else
#define CORRDET_SIMD
#endif
