// IoU of every box of one set with every box of another: (N, 4), (M, 4) -> (N, M).
#pragma once

#include <cstdint>
#include <type_traits>

#include "iou/iou.h"

namespace corrdet {

// The backward pass sums, for each of K boxes ("own"), over L boxes of the other side. Sums over
// this many of the other boxes are kept apart and added in order, which makes the work parallel
// when K is small and its result the same for any number of threads. They take K * ceil(L /
// kReductionChunk) * 40 bytes: 1% of the matrix.
constexpr int64_t kReductionChunk = 1024;

// Boxes prepared once: kBoxFields rows of `count` values, in the order of the members of Box.
template <typename Values>
CORRDET_INLINE auto load_box(Values values, int64_t count, int64_t index)
    -> Box<std::decay_t<decltype(values[0] + values[0])>> {
  return {values[index],
          values[count + index],
          values[2 * count + index],
          values[3 * count + index],
          values[4 * count + index],
          values[5 * count + index]};
}

}  // namespace corrdet
