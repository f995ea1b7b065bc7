// Sums over ranges of scores, of those inserted so far.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace corrdet {

// A segment tree over scores in ascending order, of two weights each: sums of weights and of
// weighted scores over ranges, of the scores inserted so far. Distances are from a score of the
// node's own, so that nothing large cancels.
class ScoreTree {
 public:
  struct Sums {
    double weight[2] = {0.0, 0.0};
    double distance[2] = {0.0, 0.0};
  };

  explicit ScoreTree(const std::vector<double>& scores) : scores_(scores) {
    while (leaves_ < static_cast<int64_t>(scores.size())) leaves_ *= 2;
    nodes_.resize(2 * leaves_);
    origins_.assign(2 * leaves_, scores.back());
    std::copy(scores.begin(), scores.end(), origins_.begin() + leaves_);
    for (int64_t node = leaves_ - 1; node >= 1; --node) origins_[node] = origins_[2 * node];
  }

  void insert(int64_t index, double weight0, double weight1) {
    for (int64_t node = leaves_ + index; node >= 1; node /= 2) {
      const double distance = scores_[index] - origins_[node];
      nodes_[node].weight[0] += weight0;
      nodes_[node].weight[1] += weight1;
      nodes_[node].distance[0] += weight0 * distance;
      nodes_[node].distance[1] += weight1 * distance;
    }
  }

  // Over indexs begin to end - 1, with distances from `origin`.
  Sums range(int64_t begin, int64_t end, double origin) const {
    Sums sums;
    for (begin += leaves_, end += leaves_; begin < end; begin /= 2, end /= 2) {
      if (begin & 1) add(begin++, origin, sums);
      if (end & 1) add(--end, origin, sums);
    }
    return sums;
  }

 private:
  void add(int64_t node, double origin, Sums& sums) const {
    for (int channel = 0; channel < 2; ++channel) {
      const double weight = nodes_[node].weight[channel];
      sums.weight[channel] += weight;
      sums.distance[channel] += nodes_[node].distance[channel] + weight * (origins_[node] - origin);
    }
  }

  const std::vector<double>& scores_;
  int64_t leaves_ = 1;
  std::vector<Sums> nodes_;
  std::vector<double> origins_;
};

}  // namespace corrdet
