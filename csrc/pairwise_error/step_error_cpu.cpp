#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "pairwise_error/pairwise_error.h"
#include "pairwise_error/samples_cpu.h"
#include "pairwise_error/sorted_edges.h"

namespace corrdet {
namespace {

// Of one stretch between neighbouring knots: how many logits lie in it, and the sum of their
// distances from the knot below. Weighted, where the samples have weights.
struct Stretch {
  double count = 0.0;
  double sum = 0.0;
};

// The knots s_u - delta and s_u + delta of the positives u, in ascending order of s_u. Stretch j
// holds the logits with j knots below them.
struct Knots {
  Knots(const std::vector<double>& scores, double delta)
      : half_width(delta), edges(merged(scores, delta)) {
    const int64_t count = static_cast<int64_t>(scores.size());
    first_in_window.resize(count);
    first_above_window.resize(count);
    int64_t low = 0, high = 0;
    for (int64_t u = 0; u < count; ++u) {
      while (low < edges.size() && edges[low] <= scores[u] - delta) ++low;
      while (high < edges.size() && edges[high] <= scores[u] + delta) ++high;
      first_in_window[u] = low;
      first_above_window[u] = high;
    }
  }

  static std::vector<double> merged(const std::vector<double>& scores, double delta) {
    std::vector<double> low, high, all(2 * scores.size());
    for (const double score : scores) {
      low.push_back(score - delta);
      high.push_back(score + delta);
    }
    std::merge(low.begin(), low.end(), high.begin(), high.end(), all.begin());
    return all;
  }

  double half_width;
  SortedEdges edges;
  // The first stretch that lies above s_u - delta and s_u + delta.
  std::vector<int64_t> first_in_window, first_above_window;
};

// Sums of H(x_v - s_u) over samples v, from their stretches.
class StepSums {
 public:
  StepSums(const Knots& knots, const std::vector<Stretch>& stretches)
      : knots_(knots), counts_(stretches.size() + 1), sums_(stretches.size() + 1) {
    for (int64_t j = static_cast<int64_t>(stretches.size()) - 1; j >= 1; --j) {
      const double distance = knots.edges[j - 1] - knots.edges.high();
      counts_[j] = counts_[j + 1] + stretches[j].count;
      sums_[j] = sums_[j + 1] + (stretches[j].sum + stretches[j].count * distance);
    }
  }

  // H is the difference of two ramps.
  double sum(int64_t u, double score) const {
    const double delta = knots_.half_width;
    const double difference = ramp(knots_.first_in_window[u], score - delta) -
                              ramp(knots_.first_above_window[u], score + delta);
    return std::max(difference / (2.0 * delta), 0.0);
  }

  // How many v have H > 0.
  double counted(int64_t u) const { return counts_[knots_.first_in_window[u]]; }

 private:
  // Sum of x_v - start over the x_v above `start`.
  double ramp(int64_t stretch, double start) const {
    return sums_[stretch] - counts_[stretch] * (start - knots_.edges.high());
  }

  const Knots& knots_;
  std::vector<double> counts_, sums_;  // of this stretch and all above, from the highest knot
};

std::vector<Stretch> stretches_of(const Knots& knots, const std::vector<double>& scores,
                                  const std::vector<double>* weights) {
  std::vector<Stretch> stretches(knots.edges.size() + 1);
  for (size_t k = 0; k < scores.size(); ++k) {
    const double weight = weights ? (*weights)[k] : 1.0;
    const int64_t j = knots.edges.count_below(scores[k]);
    stretches[j].count += weight;
    stretches[j].sum += weight * (scores[k] - knots.edges[j - 1]);
  }
  return stretches;
}

// The negatives' stretches; false if a logit that counts is not finite.
template <typename T>
bool stretches_of_negatives(const T* logits, const Samples& samples, const Knots& knots,
                            std::vector<Stretch>& stretches) {
  const int64_t count = static_cast<int64_t>(samples.kinds.size());
  const int64_t length = knots.edges.size() + 1;
  const int64_t chunks = count_chunks(count, length * static_cast<int64_t>(sizeof(Stretch)));
  std::vector<std::vector<Stretch>> partial(chunks);
  std::vector<char> finite(chunks, 1);
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      std::vector<Stretch>& table = partial[chunk];
      table.resize(length);
      const double low = knots.edges.low();
      bool all_finite = true;
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) {
        if (samples.kinds[i] != kNegative) continue;
        const double x = static_cast<double>(logits[i]);
        all_finite &= std::abs(x) <= std::numeric_limits<double>::max();
        if (!(x > low) || !all_finite) continue;
        const int64_t j = knots.edges.count_below(x);
        table[j].count += 1.0;
        table[j].sum += x - knots.edges[j - 1];
      }
      finite[chunk] = all_finite;
    }
  });
  stretches.assign(length, Stretch());
  for (const std::vector<Stretch>& table : partial) {
    for (int64_t j = 0; j < length; ++j) {
      stretches[j].count += table[j].count;
      stretches[j].sum += table[j].sum;
    }
  }
  return std::all_of(finite.begin(), finite.end(), [](char value) { return value != 0; });
}

// What the negatives of one stretch get back: `value` at the knot below them, rising by `slope`.
struct Line {
  double start = 0.0, value = 0.0, slope = 0.0;
};

// The sum of shares[u] * H(x - s_u) as a function of x, a line per stretch.
std::vector<Line> lines_of(const Knots& knots, const std::vector<double>& scores,
                           const std::vector<double>& shares) {
  const int64_t count = static_cast<int64_t>(scores.size());
  std::vector<Line> lines(knots.edges.size() + 1);
  Line line;
  int64_t opened = 0, closed = 0;
  for (int64_t j = 1; j <= knots.edges.size(); ++j) {
    const double knot = knots.edges[j - 1];
    if (j > 1) line.value += line.slope * (knot - line.start);
    line.start = knot;
    const double step = 2.0 * knots.half_width;
    if (opened < count && scores[opened] - knots.half_width <= knot) {
      line.slope += shares[opened++] / step;
    } else {
      line.slope -= shares[closed++] / step;
    }
    // Where no window is open, only rounding would be left of the slope.
    if (opened == closed) line.slope = 0.0;
    lines[j] = line;
  }
  return lines;
}

template <typename T>
void negatives_gradient(const T* logits, const Samples& samples, const Knots& knots,
                        const std::vector<Line>& lines, T* gradient) {
  const double low = knots.edges.low();
  at::parallel_for(0, static_cast<int64_t>(samples.kinds.size()), kSampleGrain,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const double x = static_cast<double>(logits[i]);
                       if (samples.kinds[i] != kNegative || !(x > low)) {
                         gradient[i] = T(0);
                         continue;
                       }
                       const Line& line = lines[knots.edges.count_below(x)];
                       gradient[i] = static_cast<T>(line.value + line.slope * (x - line.start));
                     }
                   });
}

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

  void insert(int64_t place, double weight0, double weight1) {
    for (int64_t node = leaves_ + place; node >= 1; node /= 2) {
      const double distance = scores_[place] - origins_[node];
      nodes_[node].weight[0] += weight0;
      nodes_[node].weight[1] += weight1;
      nodes_[node].distance[0] += weight0 * distance;
      nodes_[node].distance[1] += weight1 * distance;
    }
  }

  // Over places begin to end - 1, with distances from `origin`.
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

// The sorting error of each positive, and what each gets back (RS loss, Oksuz et al. 2021).
// Scores ascending, with their IoUs.
void sorting_errors(const std::vector<double>& scores, const std::vector<double>& ious,
                    double delta, std::vector<double>& errors, std::vector<double>& gradient) {
  const int64_t count = static_cast<int64_t>(scores.size());
  const auto place_above = [&](double value) {
    return std::upper_bound(scores.begin(), scores.end(), value) - scores.begin();
  };
  std::vector<int64_t> window_begin(count), window_end(count);
  for (int64_t u = 0; u < count; ++u) {
    window_begin[u] = place_above(scores[u] - delta);
    window_end[u] = place_above(scores[u] + delta);
  }
  // Sums of H(s_k - s_u) over the inserted k.
  const auto above = [&](const ScoreTree& tree, int64_t u, double result[2]) {
    const auto inside = tree.range(window_begin[u], window_end[u], scores[u]);
    const auto beyond = tree.range(window_end[u], count, scores[u]);
    for (int channel = 0; channel < 2; ++channel) {
      result[channel] = beyond.weight[channel] + 0.5 * inside.weight[channel] +
                        inside.distance[channel] / (2.0 * delta);
    }
  };
  const std::vector<int64_t> order = ascending_order(ious);
  const auto group_end = [&](int64_t begin) {
    int64_t end = begin;
    while (end < count && ious[order[end]] == ious[order[begin]]) ++end;
    return end;
  };

  std::vector<double> missorted(count);
  errors.assign(count, 0.0);
  gradient.assign(count, 0.0);
  std::vector<int64_t> group_begins;
  {
    ScoreTree below(scores);  // of lower IoU than u
    ScoreTree everything(scores);
    for (int64_t k = 0; k < count; ++k) everything.insert(k, 1.0, 1.0 - ious[k]);
    std::vector<double> missorted_loss(count);
    for (int64_t begin = 0; begin < count;) {
      const int64_t end = group_end(begin);
      group_begins.push_back(begin);
      for (int64_t i = begin; i < end; ++i) {
        double sums[2];
        above(below, order[i], sums);
        missorted[order[i]] = sums[0];
        missorted_loss[order[i]] = sums[1];
      }
      for (int64_t i = begin; i < end; ++i) below.insert(order[i], 1.0, 1.0 - ious[order[i]]);
      begin = end;
    }
    ScoreTree at_least(scores);  // of no lower IoU than u
    for (auto group = group_begins.rbegin(); group != group_begins.rend(); ++group) {
      const int64_t end = group_end(*group);
      for (int64_t i = *group; i < end; ++i) at_least.insert(order[i], 1.0, 1.0 - ious[order[i]]);
      for (int64_t i = *group; i < end; ++i) {
        const int64_t u = order[i];
        double sums[2];
        above(at_least, u, sums);
        // Current error minus target error, without the difference of two near numbers.
        errors[u] = (missorted_loss[u] * sums[0] - sums[1] * missorted[u]) /
                    (sums[0] * (sums[0] + missorted[u]));
      }
    }
  }
  ScoreTree higher(scores);  // of higher IoU than v
  for (auto group = group_begins.rbegin(); group != group_begins.rend(); ++group) {
    const int64_t end = group_end(*group);
    for (int64_t i = *group; i < end; ++i) {
      const int64_t v = order[i];
      const auto inside = higher.range(place_above(scores[v] - delta), window_end[v], scores[v]);
      const auto beyond = higher.range(0, place_above(scores[v] - delta), scores[v]);
      gradient[v] += beyond.weight[0] + 0.5 * inside.weight[0] - inside.distance[0] / (2.0 * delta);
    }
    for (int64_t i = *group; i < end; ++i) {
      const int64_t u = order[i];
      if (!(missorted[u] > 0.0)) continue;
      gradient[u] -= errors[u];
      higher.insert(u, errors[u] / missorted[u], 0.0);
    }
  }
}

double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// values (2,), gradients (2, S) for rank_sort and else (1, S), localization_gradient (P,).
// graded: the IoU or localization loss of each positive, in the order of the samples.
template <typename T>
void step_error_kernel(const T* logits, const Samples& samples, const std::vector<double>& graded,
                       StepLoss loss, double delta, T* values, T* gradients,
                       T* localization_gradient) {
  const int64_t samples_count = static_cast<int64_t>(samples.kinds.size());
  const int64_t count = static_cast<int64_t>(samples.positives.size());
  const int64_t rows = loss == StepLoss::kRankSort ? 2 : 1;
  std::vector<double> unordered(count);
  for (int64_t k = 0; k < count; ++k) {
    unordered[k] = static_cast<double>(logits[samples.positives[k]]);
  }
  std::vector<double> scores, errors;
  const std::vector<int64_t> order = ascending_order(unordered);
  for (const int64_t k : order) {
    scores.push_back(unordered[k]);
    if (!graded.empty()) errors.push_back(graded[k]);
  }
  const auto undefined = [&] {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::fill_n(values, 2, nan);
    std::fill_n(gradients, rows * samples_count, nan);
    if (loss == StepLoss::kAlrp) std::fill_n(localization_gradient, count, nan);
  };
  if (!all_finite(scores)) return undefined();

  const Knots knots(scores, delta);
  std::vector<Stretch> stretches;
  if (!stretches_of_negatives(logits, samples, knots, stretches)) return undefined();
  const StepSums over_negatives(knots, stretches);
  const StepSums over_positives(knots, stretches_of(knots, scores, nullptr));
  std::vector<double> false_positives(count), ranks(count), precisions(count), shares(count);
  const double itself = loss == StepLoss::kRankSort ? 0.5 : 1.0;
  for (int64_t u = 0; u < count; ++u) {
    false_positives[u] = over_negatives.sum(u, scores[u]);
    const double true_positives = over_positives.sum(u, scores[u]) - 0.5 + itself;
    ranks[u] = true_positives + false_positives[u];
    precisions[u] = true_positives / ranks[u];
    shares[u] = 1.0 / ranks[u];
  }

  double value = 0.0, second = 0.0;
  std::vector<double> sorting_gradient;
  if (loss == StepLoss::kAveragePrecision) {
    double largest = 0.0, sum = 0.0;
    for (int64_t u = 0; u < count; ++u) {
      if (precisions[u] < largest) {
        shares[u] *= (1.0 - largest) / (1.0 - precisions[u]);
      } else {
        largest = precisions[u];
      }
      sum += largest;
    }
    value = 1.0 - sum / static_cast<double>(count);
  } else if (loss == StepLoss::kAlrp) {
    const StepSums losses(knots, stretches_of(knots, scores, &errors));
    double sum = 0.0;
    std::vector<double> cumulated(count + 1, 0.0);
    for (int64_t u = count - 1; u >= 0; --u) cumulated[u] = cumulated[u + 1] + errors[u];
    std::vector<double> weights(count + 1, 0.0);
    for (int64_t u = 0; u < count; ++u) weights[u + 1] = weights[u] + 1.0 / ranks[u];
    for (int64_t u = 0, begin = 0; u < count; ++u) {
      // Equal scores count each other.
      if (scores[u] != scores[begin]) begin = u;
      second += cumulated[begin] / ranks[u];
      sum += precisions[u];
    }
    for (int64_t u = count - 1, end = count - 1; u >= 0; --u) {
      if (scores[u] != scores[end]) end = u;
      localization_gradient[order[u]] =
          static_cast<T>(weights[end + 1] / static_cast<double>(count));
    }
    value = 1.0 - sum / static_cast<double>(count);
    second /= static_cast<double>(count);
    for (int64_t u = 0; u < count; ++u) {
      const double others = losses.sum(u, scores[u]) - 0.5 * errors[u];
      shares[u] = over_negatives.counted(u) > 0.0 && false_positives[u] > 0.0
                      ? (false_positives[u] + others) / (ranks[u] * false_positives[u])
                      : 0.0;
    }
  } else {
    for (int64_t u = 0; u < count; ++u) {
      if (loss == StepLoss::kStepNegatives) {
        const double counted = over_negatives.counted(u);
        shares[u] = counted > 0.0 ? 1.0 / counted : 0.0;
      }
      value += false_positives[u] * shares[u];
    }
    value /= static_cast<double>(count);
    if (loss == StepLoss::kRankSort) {
      std::vector<double> sorting;
      sorting_errors(scores, errors, delta, sorting, sorting_gradient);
      second = mean(sorting);
    }
  }
  values[0] = static_cast<T>(value);
  values[1] = static_cast<T>(second);

  for (double& share : shares) share /= static_cast<double>(count);
  negatives_gradient(logits, samples, knots, lines_of(knots, scores, shares), gradients);
  if (rows == 2) std::fill_n(gradients + samples_count, samples_count, T(0));
  for (int64_t u = 0; u < count; ++u) {
    const int64_t place = samples.positives[order[u]];
    gradients[place] = static_cast<T>(-shares[u] * false_positives[u]);
    if (rows == 2) {
      gradients[samples_count + place] =
          static_cast<T>(sorting_gradient[u] / static_cast<double>(count));
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> step_error(
    const at::Tensor& logits, const at::Tensor& targets, c10::string_view loss_name, double delta,
    const std::optional<at::Tensor>& localization) {
  check_samples(logits, targets);
  const StepLoss loss = parse_step_loss({loss_name.data(), loss_name.size()});
  TORCH_CHECK_VALUE(std::isfinite(delta) && delta > 0, "delta must be positive and finite, got ",
                    delta);
  TORCH_CHECK_VALUE(localization.has_value() == (loss == StepLoss::kAlrp),
                    "localization is for, and needed by, the loss 'alrp'");
  const Samples samples = read_samples(targets, loss == StepLoss::kRankSort);
  std::vector<double> graded;
  if (loss == StepLoss::kAlrp) {
    check_per_positive("localization", *localization, logits);
    graded = read_per_positive("localization", *localization, samples, false);
  } else if (loss == StepLoss::kRankSort) {
    const at::Tensor places = at::from_blob(const_cast<int64_t*>(samples.positives.data()),
                                            {static_cast<int64_t>(samples.positives.size())},
                                            at::TensorOptions(at::kLong));
    graded = read_per_positive("targets", targets.index_select(0, places), samples, false);
  }
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  const int64_t rows = loss == StepLoss::kRankSort ? 2 : 1;
  at::Tensor values = at::zeros({2}, input.options());
  at::Tensor gradients = at::empty({rows, input.numel()}, input.options());
  at::Tensor localization_gradient =
      at::zeros({localization ? localization->numel() : 0}, input.options());
  if (samples.positives.empty()) {
    gradients.zero_();
  } else {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "step_error", [&] {
      step_error_kernel(input.const_data_ptr<scalar_t>(), samples, graded, loss, delta,
                        values.data_ptr<scalar_t>(), gradients.data_ptr<scalar_t>(),
                        localization_gradient.data_ptr<scalar_t>());
    });
  }
  return {values, gradients, localization_gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("step_error", &step_error); }

}  // namespace corrdet
