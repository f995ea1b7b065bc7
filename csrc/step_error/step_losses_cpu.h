// The losses on the step H, a function each.
//
// Of each positive u they know FP_u, the sum of H(s_v - s_u) over the negatives v; TP_u, the same
// over the other positives, and itself; and rank_u = TP_u + FP_u. They say what the loss is, and
// by which share of H(s_v - s_u) the update moves v up and u down. Means are over the P positives.
// Equations without a source are those of "Revisiting AP Loss for Dense Object Detection".
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "step_error/sorting_errors.h"
#include "step_error/step_loss.h"
#include "step_error/step_sums.h"

namespace corrdet {

// The positives in ascending order of their logits.
struct Ranking {
  const Knots& knots;
  std::vector<double> scores;           // s_u
  std::vector<double> per_positive;     // IoUs for Rank & Sort, localization losses for aLRP
  std::vector<double> false_positives;  // FP_u
  std::vector<double> true_positives;   // TP_u
  std::vector<double> ranks;            // rank_u
  std::vector<double> negatives;        // N_u, the number of negatives with H > 0

  int64_t size() const { return static_cast<int64_t>(scores.size()); }
  double mean(double sum) const { return sum / static_cast<double>(size()); }
  double precision(int64_t u) const { return true_positives[u] / ranks[u]; }
};

struct StepError {
  double value = 0.0, second = 0.0;
  std::vector<double> shares;
  std::vector<double> sorting_gradient;       // of `second`, for Rank & Sort, times P
  std::vector<double> localization_gradient;  // of `second`, for aLRP
};

// Precision loss with the error-driven update, Eq. 5 and 7: the mean of FP_u / rank_u.
inline StepError step_loss(const Ranking& ranking) {
  StepError error;
  double sum = 0.0;
  for (int64_t u = 0; u < ranking.size(); ++u) {
    error.shares.push_back(1.0 / ranking.ranks[u]);
    sum += ranking.false_positives[u] * error.shares[u];
  }
  error.value = ranking.mean(sum);
  return error;
}

// Pairwise error with the number of valid negatives as balance constant, Eq. 8 and "Balance
// Constant" under it: the mean of FP_u / N_u.
inline StepError step_negatives_loss(const Ranking& ranking) {
  StepError error;
  double sum = 0.0;
  for (int64_t u = 0; u < ranking.size(); ++u) {
    const double negatives = ranking.negatives[u];
    error.shares.push_back(negatives > 0.0 ? 1.0 / negatives : 0.0);
    sum += ranking.false_positives[u] * error.shares[u];
  }
  error.value = ranking.mean(sum);
  return error;
}

// AP Loss (Chen et al. 2019): 1 - the mean interpolated precision. The precision of u is
// TP_u / rank_u, interpolated the largest of those of u and of all positives of a lower logit;
// where it is raised, the update of Eq. 7 is scaled by (1 - interpolated) / (1 - precision).
inline StepError average_precision_loss(const Ranking& ranking) {
  StepError error;
  double interpolated = 0.0, sum = 0.0;
  for (int64_t u = 0; u < ranking.size(); ++u) {
    const double precision = ranking.precision(u);
    double share = 1.0 / ranking.ranks[u];
    if (precision < interpolated) {
      share *= (1.0 - interpolated) / (1.0 - precision);
    } else {
      interpolated = precision;
    }
    error.shares.push_back(share);
    sum += interpolated;
  }
  error.value = 1.0 - ranking.mean(sum);
  return error;
}

// Rank & Sort Loss (Oksuz et al. 2021): the ranking error is the mean of FP_u / rank_u; the sorting
// error is between the positives, see sorting_errors.h.
inline StepError rank_sort_loss(const Ranking& ranking) {
  StepError error = step_loss(ranking);
  SortingErrors sorting =
      sorting_errors(ranking.scores, ranking.per_positive, ranking.knots.half_width);
  double sum = 0.0;
  for (const double sorting_error : sorting.errors) sum += sorting_error;
  error.second = ranking.mean(sum);
  error.sorting_gradient = std::move(sorting.gradient);
  return error;
}

// aLRP Loss (Oksuz et al. 2020). Classification: 1 - the mean precision, with an update by (FP_u +
// the localization losses of the other positives, weighted by H) / rank_u, spread over the false
// positives, of which there have to be some. Localization: the mean of the localization losses of
// the positives v with s_v >= s_u, over rank_u.
inline StepError alrp_loss(const Ranking& ranking) {
  const int64_t count = ranking.size();
  const std::vector<double>&scores = ranking.scores, &losses = ranking.per_positive;
  StepError error;
  double precisions = 0.0, localizations = 0.0;
  std::vector<double> cumulated(count + 1, 0.0);
  for (int64_t u = count - 1; u >= 0; --u) cumulated[u] = cumulated[u + 1] + losses[u];
  for (int64_t u = 0, begin = 0; u < count; ++u) {
    // Equal scores count each other.
    if (scores[u] != scores[begin]) begin = u;
    localizations += cumulated[begin] / ranking.ranks[u];
    precisions += ranking.precision(u);
  }
  error.value = 1.0 - ranking.mean(precisions);
  error.second = ranking.mean(localizations);

  std::vector<double> inverse_ranks(count + 1, 0.0);  // summed up
  for (int64_t u = 0; u < count; ++u) {
    inverse_ranks[u + 1] = inverse_ranks[u] + 1.0 / ranking.ranks[u];
  }
  error.localization_gradient.resize(count);
  for (int64_t u = count - 1, end = count - 1; u >= 0; --u) {
    if (scores[u] != scores[end]) end = u;
    error.localization_gradient[u] = ranking.mean(inverse_ranks[end + 1]);
  }

  const StepSums weighted(ranking.knots, positive_stretches(ranking.knots, scores, &losses));
  for (int64_t u = 0; u < count; ++u) {
    const double wrong = ranking.false_positives[u];
    const double others = weighted.sum(u, scores[u]) - 0.5 * losses[u];
    error.shares.push_back(ranking.negatives[u] > 0.0 && wrong > 0.0
                               ? (wrong + others) / (ranking.ranks[u] * wrong)
                               : 0.0);
  }
  return error;
}

inline StepError step_error_of(StepLoss loss, const Ranking& ranking) {
  switch (loss) {
    case StepLoss::average_precision:
      return average_precision_loss(ranking);
    case StepLoss::step:
      return step_loss(ranking);
    case StepLoss::step_negatives:
      return step_negatives_loss(ranking);
    case StepLoss::rank_sort:
      return rank_sort_loss(ranking);
    case StepLoss::alrp:
      return alrp_loss(ranking);
  }
  return {};
}

}  // namespace corrdet
