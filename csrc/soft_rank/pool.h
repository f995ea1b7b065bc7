// Pools of the isotonic regression behind the soft rank.
//
// Blondel et al. 2020, "Fast Differentiable Sorting and Ranking", Proposition 3 and 4, l2: with
// values sorted in ascending order t_1 <= ... <= t_n, the soft ranks are t_i / strength - v_i,
// where v is the non-decreasing sequence closest to t_i / strength - i. v is constant on pools of
// consecutive i, the mean over the pool, so
//
//     rank_i = (mean of i over the pool) + (t_i - mean of t over the pool) / strength,
//
// and in this form nothing large cancels: a pool of one value has its exact rank for any strength.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace corrdet {

// Sorted positions start .. start + count - 1. The mean of their values is anchor + offset with the
// anchor one of the values, so that equal values have an offset of exactly 0.
struct Pool {
  int64_t start;
  int64_t count;
  double anchor;
  double offset;
};

// Mean of the 0-based positions.
CORRDET_INLINE double middle(const Pool& pool) {
  return static_cast<double>(pool.start) + 0.5 * static_cast<double>(pool.count - 1);
}

// Whether the mean of t - strength * i does not increase from one pool to the next one. The means
// of t and of i are compared apart, so that equal values pool even where strength * i vanishes
// beside them.
CORRDET_INLINE bool must_pool(const Pool& left, const Pool& right, double strength) {
  const double rise = (right.anchor - left.anchor) + (right.offset - left.offset);
  return rise <= strength * (middle(right) - middle(left));
}

CORRDET_INLINE Pool pooled(const Pool& left, const Pool& right) {
  const int64_t count = left.count + right.count;
  const double right_offset = (right.anchor - left.anchor) + right.offset;
  // The mean as a step from the left's, weighted by the share of the right.
  const double share = static_cast<double>(right.count) / static_cast<double>(count);
  return {left.start, count, left.anchor, left.offset + (right_offset - left.offset) * share};
}

// 1-based soft rank of a value in its pool.
CORRDET_INLINE double rank_in_pool(const Pool& pool, double value, double strength) {
  return middle(pool) + 1.0 + ((value - pool.anchor) - pool.offset) / strength;
}

}  // namespace corrdet
