// Logits far from 0, brought near. Beside a large logit s_u the knots s_u - delta and s_u + delta
// are rounded, at 1e16 to s_u itself. H is a function of differences, which are exact there, and
// constant beyond delta: so gaps between positives may be shortened to 4 delta without changing it.
#pragma once

#include <cstdint>

#include "common/device.h"

namespace corrdet {

// The largest logit, in units of delta, that knots are computed beside.
constexpr double kFarLogit = 1048576.0;

// How far a positive's position is from that of the one before it.
CORRDET_INLINE double near_gap(double gap, double delta) {
  return gap < 4.0 * delta ? gap : 4.0 * delta;
}

// Where `value` is among `count` ascending scores that are at `positions`, and of which `number`
// are not above it: as far from the nearest as it was, but not more than 2 delta.
template <typename Scores, typename Positions>
CORRDET_INLINE double near_position(const Scores& scores, const Positions& positions, int64_t count,
                                    int64_t number, double value, double delta) {
  const double most = 2.0 * delta;
  const double up = number > 0 ? value - static_cast<double>(scores[number - 1]) : 0.0;
  const double down = number < count ? static_cast<double>(scores[number]) - value : 0.0;
  if (number == count || (number > 0 && up <= down)) {
    return positions[number - 1] + (up < most ? up : most);
  }
  return positions[number] - (down < most ? down : most);
}

}  // namespace corrdet
