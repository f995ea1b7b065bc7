// Device code of the losses on the step H, a function each; step_losses_cpu.h has the same for a
// CPU, and says which equations they are.
#pragma once

#include <cstdint>

#include "common/block.cuh"
#include "common/device.h"
#include "pairwise_error/samples_kernel.cuh"
#include "step_error/step_loss.h"
#include "step_error/step_passes_kernel.cuh"

namespace corrdet {

constexpr int kSolveThreads = 512;

// Doubles of the table that step_solve_kernel works in.
constexpr int64_t step_table_size(StepLoss loss, int64_t capacity) {
  return has_localization(loss) ? 4 * capacity + 4 : 2 * capacity + 2;
}

// The positives in ascending order of their logits, as the threads of one block see them.
template <typename T, typename Shared>
struct DeviceRanking {
  SortedScores<T> scores;
  Pointer<double> false_positives;  // FP_u
  Pointer<double> shares;           // of H in the update; before the losses, 1 / N_u
  Pointer<double> table;            // prefix sums, from `ranks_at` on the ranks
  double delta;
  Shared shared;

  CORRDET_INLINE int64_t count() const { return scores.count; }
  CORRDET_INLINE int64_t ranks_at() const { return scores.count + 1; }
  CORRDET_INLINE double rank(int64_t u) const { return table[ranks_at() + u]; }
  CORRDET_INLINE double distance(int64_t u) const { return scores[u] - scores[0]; }

  // table[offset + i] = term(0) + ... + term(i - 1), for all i up to the number of positives.
  template <typename Term>
  __device__ void prefix_sums(int64_t offset, Term term) const {
    const auto target = table;
    if (threadIdx.x == 0) target[offset] = 0.0;
    block_scan(count(), shared, Add(), term,
               [&](int64_t i, double sum) { target[offset + i + 1] = sum; });
  }

  // The sum of H(s_v - s_u) over the positives v, from prefix sums of their distances; weighted,
  // where `weights` is not negative, and so are then the distances.
  __device__ double step_sum(int64_t u, int64_t weights, int64_t distances) const {
    const int64_t begin = scores.template number_below<true>(0.0, scores[u] - delta);
    const int64_t end = scores.template number_below<true>(0.0, scores[u] + delta);
    const auto weight_before = [&](int64_t k) {
      return weights < 0 ? static_cast<double>(k) : double(table[weights + k]);
    };
    const double inside = weight_before(end) - weight_before(begin);
    const double moment =
        double(table[distances + end]) - double(table[distances + begin]) - inside * distance(u);
    return weight_before(count()) - weight_before(end) + 0.5 * inside + moment / (2.0 * delta);
  }
};

// What a thread has of the sums over positives that the two parts of a loss are the means of.
struct LossSums {
  double value = 0.0, second = 0.0;
};

// Shares of 1 / rank_u, of Rank & Sort Loss too: its sorting error has kernels of its own.
template <typename Ranking>
__device__ LossSums step_loss(const Ranking& ranking) {
  LossSums sums;
  for (int64_t u = threadIdx.x; u < ranking.count(); u += blockDim.x) {
    ranking.shares[u] = 1.0 / ranking.rank(u);
    sums.value += double(ranking.false_positives[u]) * double(ranking.shares[u]);
  }
  return sums;
}

// Shares of 1 / N_u, which are there already.
template <typename Ranking>
__device__ LossSums step_negatives_loss(const Ranking& ranking) {
  LossSums sums;
  for (int64_t u = threadIdx.x; u < ranking.count(); u += blockDim.x) {
    sums.value += double(ranking.false_positives[u]) * double(ranking.shares[u]);
  }
  return sums;
}

template <typename Ranking>
__device__ LossSums average_precision_loss(const Ranking& ranking) {
  LossSums sums;
  const auto precision = [&](int64_t u) {
    return 1.0 - double(ranking.false_positives[u]) / ranking.rank(u);
  };
  block_scan(ranking.count(), ranking.shared, Maximum(), precision,
             [&](int64_t u, double interpolated) {
               double share = 1.0 / ranking.rank(u);
               if (precision(u) < interpolated) {
                 share *= (1.0 - interpolated) / (1.0 - precision(u));
               }
               ranking.shares[u] = share;
               sums.value += 1.0 - interpolated;
             });
  return sums;
}

// ordinals: of the positives; localization and its gradient: by ordinal.
template <typename T, typename Ranking>
__device__ LossSums alrp_loss(const Ranking& ranking, Pointer<const int32_t> ordinals,
                              Pointer<const double> localization,
                              Pointer<T> localization_gradient) {
  LossSums sums;
  const int64_t count = ranking.count(), losses_at = 2 * count + 2, moments_at = 3 * count + 3;
  const auto given = ranking.scores.given();
  const auto loss = [&](int64_t k) { return double(localization[int32_t(ordinals[k])]); };
  ranking.prefix_sums(losses_at, loss);
  ranking.prefix_sums(moments_at, [&](int64_t k) { return loss(k) * ranking.distance(k); });
  for (int64_t u = threadIdx.x; u < count; u += blockDim.x) {
    const double rank = ranking.rank(u), wrong = ranking.false_positives[u];
    const double others = ranking.step_sum(u, losses_at, moments_at) - 0.5 * loss(u);
    ranking.shares[u] = wrong > 0.0 ? (wrong + others) / (rank * wrong) : 0.0;
    sums.value += wrong / rank;
    // Equal scores count each other.
    const int64_t begin = given.template number_below<false>(0.0, given[u]);
    sums.second +=
        (double(ranking.table[losses_at + count]) - double(ranking.table[losses_at + begin])) /
        rank;
  }
  __syncthreads();
  const double scale_down = 1.0 / static_cast<double>(count);
  ranking.prefix_sums(losses_at, [&](int64_t u) { return scale_down / ranking.rank(u); });
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
    const int64_t end = given.template number_below<true>(0.0, given[k]);
    localization_gradient[int32_t(ordinals[k])] =
        static_cast<T>(double(ranking.table[losses_at + end]));
  }
  return sums;
}

// FP_u, and 1 / N_u as shares, from what stretches_kernel summed up; counts become sums from the
// top down, and so do those of distances from the highest knot, in the table.
template <typename Ranking>
__device__ void sum_false_positives(const Ranking& ranking, double scale, Pointer<int32_t> counts,
                                    Pointer<const unsigned long long> sums) {
  const auto scores = ranking.scores;
  const auto table = ranking.table;
  const double delta = ranking.delta, width = 2.0 * delta;
  const int64_t stretches = 2 * ranking.count() + 1;
  const double top = scores[ranking.count() - 1] + delta;
  block_scan(
      stretches - 1, ranking.shared, Add(),
      [&](int64_t i) {
        const int64_t j = stretches - 1 - i;
        const double n = static_cast<double>(int32_t(counts[j]));
        if (n == 0.0) return 0.0;
        const double inside = static_cast<double>((unsigned long long)(sums[j])) / scale * width;
        return inside + n * (knot_below(scores, delta, j) - top);
      },
      [&](int64_t i, double sum) { table[stretches - 1 - i] = sum; });
  block_scan(
      stretches - 1, ranking.shared, Add(),
      [&](int64_t i) { return static_cast<double>(int32_t(counts[stretches - 1 - i])); },
      [&](int64_t i, double sum) { counts[stretches - 1 - i] = static_cast<int32_t>(sum); });

  // Sum of the distances of the negatives above `start` from there: H is a difference of two.
  const auto ramp = [&](int64_t j, double start) {
    if (j >= stretches) return 0.0;
    return double(table[j]) - static_cast<double>(int32_t(counts[j])) * (start - top);
  };
  for (int64_t u = threadIdx.x; u < ranking.count(); u += blockDim.x) {
    const double low = scores[u] - delta, high = scores[u] + delta;
    const int64_t inside = scores.template number_below<true>(-delta, low) +
                           scores.template number_below<true>(delta, low);
    const int64_t above = scores.template number_below<true>(-delta, high) +
                          scores.template number_below<true>(delta, high);
    const double difference = ramp(inside, low) - ramp(above, high);
    const bool any = inside < stretches && int32_t(counts[inside]) > 0;
    ranking.false_positives[u] = any && difference > 0.0 ? difference / width : 0.0;
    ranking.shares[u] = any ? 1.0 / static_cast<double>(int32_t(counts[inside])) : 0.0;
  }
  __syncthreads();
}

// rank_u = TP_u + FP_u; a positive counts itself by `itself`.
template <typename Ranking>
__device__ void rank_positives(const Ranking& ranking, double itself) {
  ranking.prefix_sums(0, [&](int64_t k) { return ranking.distance(k); });
  const auto table = ranking.table;
  for (int64_t u = threadIdx.x; u < ranking.count(); u += blockDim.x) {
    table[ranking.ranks_at() + u] =
        ranking.step_sum(u, -1, 0) - 0.5 + itself + double(ranking.false_positives[u]);
  }
  __syncthreads();
}

// One block, between the passes. values: (2,). false_positives, shares: (P,) in sorted order,
// shares divided by P. counts and sums as stretches_kernel left them, overwritten. table: of
// step_table_size; at the end the prefix sums that step_gradient_kernel reads. localization and
// localization_gradient: (localizations,), for aLRP.
template <typename T>
__global__ void __launch_bounds__(kSolveThreads, 1)
    step_solve_kernel(DevicePositives<T> positives, Pointer<const int32_t> all_ordinals,
                      StepLoss loss, double scale, Pointer<const double> localization,
                      Pointer<int32_t> counts, Pointer<const unsigned long long> sums,
                      Pointer<double> false_positives, Pointer<double> shares,
                      Pointer<double> table, Pointer<T> values, Pointer<T> localization_gradient,
                      int64_t localizations, Pointer<const int32_t> info) {
  CORRDET_SHARED(double, shared);
  const int64_t count = info[kPositives];
  const int64_t thread = threadIdx.x, threads = blockDim.x;
  if (count == 0 || int32_t(info[kFaults]) != 0) {
    const T value = int32_t(info[kFaults]) != 0 ? static_cast<T>(nan("")) : T(0);
    if (thread < 2) values[thread] = value;
    if (has_localization(loss)) {
      for (int64_t k = thread; k < localizations; k += threads) localization_gradient[k] = value;
    }
    return;
  }
  const auto ordinals = all_ordinals + sorted_buffer(count) * positives.capacity;
  const DeviceRanking<T, decltype(shared)> ranking = {
      positives.sorted(info), false_positives, shares, table, positives.delta, shared};
  sum_false_positives(ranking, scale, counts, sums);
  rank_positives(ranking, loss == StepLoss::rank_sort ? 0.5 : 1.0);

  LossSums loss_sums;
  switch (loss) {
    case StepLoss::average_precision:
      loss_sums = average_precision_loss(ranking);
      break;
    case StepLoss::step:
    case StepLoss::rank_sort:
      loss_sums = step_loss(ranking);
      break;
    case StepLoss::step_negatives:
      loss_sums = step_negatives_loss(ranking);
      break;
    case StepLoss::alrp:
      loss_sums = alrp_loss(ranking, ordinals, localization, localization_gradient);
      break;
  }
  const double value = block_reduce(loss_sums.value, shared, Add());
  const double second = block_reduce(loss_sums.second, shared, Add());
  const double scale_down = 1.0 / static_cast<double>(count);
  if (thread == 0) {
    values[0] = static_cast<T>(value * scale_down);
    // The second part of Rank & Sort Loss comes from sorting_gradient_kernel.
    if (loss != StepLoss::rank_sort) values[1] = static_cast<T>(second * scale_down);
  }
  for (int64_t u = thread; u < count; u += threads) shares[u] = double(shares[u]) * scale_down;
  __syncthreads();
  ranking.prefix_sums(0, [&](int64_t u) { return double(shares[u]); });
  ranking.prefix_sums(ranking.ranks_at(),
                      [&](int64_t u) { return double(shares[u]) * ranking.distance(u); });
}

}  // namespace corrdet
