// The positives of smooth_error on the CPU, and the sums that its losses are made of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace corrdet {

inline double sigmoid(double y) { return 1.0 / (1.0 + std::exp(-y)); }

inline double softplus(double y) { return std::max(y, 0.0) + std::log1p(std::exp(-std::abs(y))); }

// The positives in ascending order of their logits.
struct Positives {
  double delta;
  std::vector<double> scores, edges;  // edges: s_u - delta, above which samples count
  std::vector<double> ious;           // empty where pairs of positives are no errors
  std::vector<int64_t> indices;       // among the samples

  int64_t size() const { return static_cast<int64_t>(scores.size()); }
  bool paired() const { return !ious.empty(); }

  // Whether a sample counts for a positive: exact also where its edge is rounded.
  bool counts(double value, int64_t u) const { return value - scores[u] > -delta; }
};

// What the losses need of each positive: sums over the samples that count.
struct Sums {
  explicit Sums(int64_t count) : rank(count), error(count), loss(count), negatives(count) {}
  std::vector<double> rank;       // sigmoids, of all samples
  std::vector<double> error;      // sigmoids, of its false positives
  std::vector<double> loss;       // softpluses / lambda, of the same
  std::vector<double> negatives;  // their number
};

}  // namespace corrdet
