#include "step_error/sorting_errors.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "pairwise_error/samples_cpu.h"
#include "step_error/score_tree.h"

namespace corrdet {
namespace {

// The positives, walked through in order of their IoUs, with trees of those inserted on the way.
class Sorting {
 public:
  Sorting(const std::vector<double>& scores, const std::vector<double>& ious, double delta)
      : scores_(scores),
        ious_(ious),
        delta_(delta),
        count_(static_cast<int64_t>(scores.size())),
        order_(ascending_order(ious)) {
    const auto index_above = [&](double value) {
      return std::upper_bound(scores.begin(), scores.end(), value) - scores.begin();
    };
    for (int64_t u = 0; u < count_; ++u) {
      window_begin_.push_back(index_above(scores[u] - delta));
      window_end_.push_back(index_above(scores[u] + delta));
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (i == 0 || ious[order_[i]] != ious[order_[i - 1]]) groups_.push_back(i);
    }
    groups_.push_back(count_);
  }

  // Sums of H(s_v - s_u) over the v of lower IoU than u, and of H(s_v - s_u) (1 - I_v).
  void sum_missorted() {
    missorted_.resize(count_);
    missorted_loss_.resize(count_);
    ScoreTree lower(scores_);
    for (size_t group = 0; group + 1 < groups_.size(); ++group) {
      for (int64_t i = groups_[group]; i < groups_[group + 1]; ++i) {
        double sums[2];
        sum_above(lower, order_[i], sums);
        missorted_[order_[i]] = sums[0];
        missorted_loss_[order_[i]] = sums[1];
      }
      insert_group(group, lower);
    }
  }

  // The current error of u is the mean of 1 - I_v over all v, weighted by H(s_v - s_u); its target
  // the same over those of no lower IoU; the sorting error their difference.
  std::vector<double> errors() const {
    std::vector<double> errors(count_, 0.0);
    ScoreTree at_least(scores_);
    for (size_t group = groups_.size() - 1; group-- > 0;) {
      insert_group(group, at_least);
      for (int64_t i = groups_[group]; i < groups_[group + 1]; ++i) {
        const int64_t u = order_[i];
        double sums[2];
        sum_above(at_least, u, sums);
        // Without the difference of two near numbers.
        errors[u] = (missorted_loss_[u] * sums[0] - sums[1] * missorted_[u]) /
                    (sums[0] * (sums[0] + missorted_[u]));
      }
    }
    return errors;
  }

  // The identity update: u moves down by its error, and the v of lower IoU up, in proportion to
  // H(s_v - s_u).
  std::vector<double> gradient(const std::vector<double>& errors) const {
    std::vector<double> gradient(count_, 0.0);
    ScoreTree higher(scores_);  // of higher IoU than v
    for (size_t group = groups_.size() - 1; group-- > 0;) {
      for (int64_t i = groups_[group]; i < groups_[group + 1]; ++i) {
        const int64_t v = order_[i];
        const auto inside = higher.range(window_begin_[v], window_end_[v], scores_[v]);
        const auto beyond = higher.range(0, window_begin_[v], scores_[v]);
        gradient[v] +=
            beyond.weight[0] + 0.5 * inside.weight[0] - inside.distance[0] / (2.0 * delta_);
      }
      for (int64_t i = groups_[group]; i < groups_[group + 1]; ++i) {
        const int64_t u = order_[i];
        if (!(missorted_[u] > 0.0)) continue;
        gradient[u] -= errors[u];
        higher.insert(u, errors[u] / missorted_[u], 0.0);
      }
    }
    return gradient;
  }

 private:
  void insert_group(size_t group, ScoreTree& tree) const {
    for (int64_t i = groups_[group]; i < groups_[group + 1]; ++i) {
      tree.insert(order_[i], 1.0, 1.0 - ious_[order_[i]]);
    }
  }

  // Sums of H(s_k - s_u) over the inserted k.
  void sum_above(const ScoreTree& tree, int64_t u, double result[2]) const {
    const auto inside = tree.range(window_begin_[u], window_end_[u], scores_[u]);
    const auto beyond = tree.range(window_end_[u], count_, scores_[u]);
    for (int channel = 0; channel < 2; ++channel) {
      result[channel] = beyond.weight[channel] + 0.5 * inside.weight[channel] +
                        inside.distance[channel] / (2.0 * delta_);
    }
  }

  const std::vector<double>&scores_, &ious_;
  double delta_;
  int64_t count_;
  std::vector<int64_t> order_;   // by IoU
  std::vector<int64_t> groups_;  // where those of equal IoU begin in `order_`, and its end
  std::vector<int64_t> window_begin_, window_end_;
  std::vector<double> missorted_, missorted_loss_;
};

}  // namespace

SortingErrors sorting_errors(const std::vector<double>& scores, const std::vector<double>& ious,
                             double delta) {
  Sorting sorting(scores, ious, delta);
  sorting.sum_missorted();
  std::vector<double> errors = sorting.errors();
  std::vector<double> gradient = sorting.gradient(errors);
  return {std::move(errors), std::move(gradient)};
}

}  // namespace corrdet
