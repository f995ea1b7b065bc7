// Samples far from 0, brought near, see near_position.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "step_error/near_position.h"

namespace corrdet {

// Positions of ascending scores; distinct scores have distinct ones.
inline std::vector<double> near_scores(const std::vector<double>& scores, double delta) {
  std::vector<double> positions(scores.size(), 0.0);
  for (size_t u = 1; u < scores.size(); ++u) {
    const double gap = scores[u] - scores[u - 1], before = positions[u - 1];
    positions[u] = before + near_gap(gap, delta);
    if (gap > 0.0 && !(positions[u] > before)) {
      positions[u] = std::nextafter(before, std::numeric_limits<double>::infinity());
    }
  }
  return positions;
}

// Positions of all samples; none where a logit that is not ignored is not finite.
template <typename T>
std::vector<double> near_samples(const T* logits, const Samples& samples, double delta) {
  std::vector<double> scores;
  for (const int64_t index : samples.positives) {
    scores.push_back(static_cast<double>(logits[index]));
  }
  if (!all_finite(scores)) return {};
  std::sort(scores.begin(), scores.end());
  const std::vector<double> positions = near_scores(scores, delta);
  const int64_t count = static_cast<int64_t>(scores.size());
  std::vector<double> result(samples.size(), 0.0);
  for (int64_t i = 0; i < samples.size(); ++i) {
    if (samples.labels[i] == kIgnored) continue;
    const double value = static_cast<double>(logits[i]);
    if (!std::isfinite(value)) return {};
    const int64_t number = std::upper_bound(scores.begin(), scores.end(), value) - scores.begin();
    result[i] = near_position(scores, positions, count, number, value, delta);
  }
  return result;
}

}  // namespace corrdet
