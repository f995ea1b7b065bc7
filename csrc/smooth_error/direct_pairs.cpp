#include "smooth_error/direct_pairs.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "smooth_error/sigmoid_series.h"

namespace corrdet {

template <typename T>
void direct_sums(const T* logits, const Samples& samples, const Positives& positives, double lam,
                 Sums& sums) {
  const int64_t count = samples.size();
  const double reach = Series<T>::saturated / lam;
  at::parallel_for(0, positives.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const double score = positives.scores[u];
      double sigmoids = 0.0, softpluses = 0.0, counted = 0.0;
      for (int64_t i = 0; i < count; ++i) {
        const double x = static_cast<double>(logits[i]);
        if (samples.labels[i] != kNegative || !positives.counts(x, u)) continue;
        counted += 1.0;
        const double distance = x - score;
        sigmoids += distance > reach ? 1.0 : sigmoid(lam * distance);
        softpluses += distance > reach ? distance : softplus(lam * distance) / lam;
      }
      sums.negatives[u] = counted;
      sums.error[u] = sums.rank[u] = sigmoids;
      sums.loss[u] = softpluses;
      for (int64_t v = 0; v < positives.size(); ++v) {
        if (!positives.counts(positives.scores[v], u)) continue;
        const double distance = positives.scores[v] - score;
        const double value = sigmoid(lam * distance);
        sums.rank[u] += value;
        if (positives.paired() && positives.ious[v] < positives.ious[u]) {
          sums.error[u] += value;
          sums.loss[u] += distance > reach ? distance : softplus(lam * distance) / lam;
        }
      }
    }
  });
}

template <typename T>
void direct_gradients(const T* logits, const Samples& samples, const Positives& positives,
                      double lam, const std::vector<double>& shares, T* gradient,
                      std::vector<double>& on_positives) {
  const double reach = Series<T>::saturated / lam;
  std::vector<double> totals(positives.size() + 1, 0.0);
  for (int64_t u = 0; u < positives.size(); ++u) totals[u + 1] = totals[u] + shares[u];
  const int64_t grain = std::max<int64_t>(1, kSampleGrain / positives.size());
  at::parallel_for(0, samples.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double x = static_cast<double>(logits[i]);
      double sum = 0.0;
      if (samples.labels[i] == kNegative) {
        const auto& scores = positives.scores;
        int64_t u = std::partition_point(scores.begin(), scores.end(),
                                         [&](double score) { return x - score > reach; }) -
                    scores.begin();
        sum = totals[u];
        for (; u < positives.size() && positives.counts(x, u); ++u) {
          sum += shares[u] * sigmoid(lam * (x - scores[u]));
        }
      }
      gradient[i] = static_cast<T>(sum);
    }
  });
  if (!positives.paired()) return;
  at::parallel_for(0, positives.size(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const double x = positives.scores[v];
      for (int64_t u = 0; u < positives.size() && positives.counts(x, u); ++u) {
        if (positives.ious[v] < positives.ious[u]) {
          on_positives[v] += shares[u] * sigmoid(lam * (x - positives.scores[u]));
        }
      }
    }
  });
}

#define CORRDET_INSTANTIATE(T)                                                          \
  template void direct_sums(const T*, const Samples&, const Positives&, double, Sums&); \
  template void direct_gradients(const T*, const Samples&, const Positives&, double,    \
                                 const std::vector<double>&, T*, std::vector<double>&);
CORRDET_INSTANTIATE(float)
CORRDET_INSTANTIATE(double)

}  // namespace corrdet
