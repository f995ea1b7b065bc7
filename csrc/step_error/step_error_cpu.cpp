#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "step_error/near_samples.h"
#include "step_error/step_error.h"
#include "step_error/step_losses_cpu.h"
#include "step_error/step_sums.h"

namespace corrdet {
namespace {

// How the negatives and the other positives rank each positive. A positive counts itself by 1, in
// Rank & Sort Loss by H(0) = 1/2.
Ranking rank_positives(const Knots& knots, std::vector<double> scores,
                       std::vector<double> per_positive, const std::vector<Stretch>& negatives,
                       double itself) {
  const StepSums over_negatives(knots, negatives);
  const StepSums over_positives(knots, positive_stretches(knots, scores, nullptr));
  Ranking ranking{knots, std::move(scores), std::move(per_positive), {}, {}, {}, {}};
  for (int64_t u = 0; u < ranking.size(); ++u) {
    const double score = ranking.scores[u];
    const double wrong = over_negatives.sum(u, score);
    const double right = over_positives.sum(u, score) - 0.5 + itself;
    ranking.false_positives.push_back(wrong);
    ranking.true_positives.push_back(right);
    ranking.ranks.push_back(right + wrong);
    ranking.negatives.push_back(over_negatives.counted(u));
  }
  return ranking;
}

template <typename T>
struct Outputs {
  T* values;                 // (2,)
  T* gradients;              // (rows, S)
  T* localization_gradient;  // (P,) for aLRP
};

// per_positive: the IoU or localization loss of each positive, in the order of the samples. X: of
// the logits. False where a logit that is not ignored is beyond `largest`, or undefined.
template <typename X, typename T>
bool sum_step_errors(const X* logits, const Samples& samples,
                     const std::vector<double>& per_positive, StepLoss loss, double delta,
                     double largest, const Outputs<T>& outputs) {
  const int64_t count = static_cast<int64_t>(samples.positives.size());
  const int64_t rows = gradient_rows(loss);
  std::vector<double> unordered;
  for (const int64_t index : samples.positives) {
    unordered.push_back(static_cast<double>(logits[index]));
  }
  std::vector<double> scores, ordered;
  const std::vector<int64_t> order = ascending_order(unordered);
  for (const int64_t k : order) {
    scores.push_back(unordered[k]);
    if (!per_positive.empty()) ordered.push_back(per_positive[k]);
  }
  for (const double score : scores) {
    if (!(std::abs(score) <= largest)) return false;
  }

  const Knots knots(scores, delta);
  std::vector<Stretch> negatives;
  if (!negative_stretches(logits, samples, knots, largest, negatives)) return false;
  const Ranking ranking = rank_positives(knots, std::move(scores), std::move(ordered), negatives,
                                         loss == StepLoss::rank_sort ? 0.5 : 1.0);
  StepError error = step_error_of(loss, ranking);
  outputs.values[0] = static_cast<T>(error.value);
  outputs.values[1] = static_cast<T>(error.second);

  for (double& share : error.shares) share = ranking.mean(share);
  negatives_gradient(logits, samples, knots, gradient_lines(knots, ranking.scores, error.shares),
                     outputs.gradients);
  T* const second_gradient = outputs.gradients + samples.size();
  if (rows == 2) std::fill_n(second_gradient, samples.size(), T(0));
  for (int64_t u = 0; u < count; ++u) {
    const int64_t index = samples.positives[order[u]];
    outputs.gradients[index] = static_cast<T>(-error.shares[u] * ranking.false_positives[u]);
    if (rows == 2) second_gradient[index] = static_cast<T>(ranking.mean(error.sorting_gradient[u]));
    if (has_localization(loss)) {
      outputs.localization_gradient[order[u]] = static_cast<T>(error.localization_gradient[u]);
    }
  }
  return true;
}

template <typename T>
void step_error_kernel(const T* logits, const Samples& samples,
                       const std::vector<double>& per_positive, StepLoss loss, double delta,
                       const Outputs<T>& outputs) {
  if (sum_step_errors(logits, samples, per_positive, loss, delta, kFarLogit * delta, outputs)) {
    return;
  }
  const std::vector<double> positions = near_samples(logits, samples, delta);
  if (!positions.empty()) {
    sum_step_errors(positions.data(), samples, per_positive, loss, delta,
                    std::numeric_limits<double>::max(), outputs);
    return;
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::fill_n(outputs.values, 2, nan);
  std::fill_n(outputs.gradients, gradient_rows(loss) * samples.size(), nan);
  if (has_localization(loss)) {
    std::fill_n(outputs.localization_gradient, samples.positives.size(), nan);
  }
}

// The IoU or localization loss of each positive, or nothing.
std::vector<double> read_step_values(StepLoss loss, const at::Tensor& targets,
                                     const std::optional<at::Tensor>& localization,
                                     const Samples& samples) {
  if (has_localization(loss)) {
    return read_per_positive("localization", *localization, samples, false);
  }
  if (!has_soft_targets(loss)) return {};
  const at::Tensor indices =
      at::from_blob(const_cast<int64_t*>(samples.positives.data()),
                    {static_cast<int64_t>(samples.positives.size())}, at::TensorOptions(at::kLong));
  return read_per_positive("targets", targets.index_select(0, indices), samples, false);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> step_error(
    const at::Tensor& logits, const at::Tensor& targets, c10::string_view loss_name, double delta,
    const std::optional<at::Tensor>& localization) {
  const StepLoss loss =
      check_step_error(logits, targets, {loss_name.data(), loss_name.size()}, delta, localization);
  const Samples samples = read_samples(targets, has_soft_targets(loss));
  const std::vector<double> per_positive = read_step_values(loss, targets, localization, samples);
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  StepErrorResults results(input, loss, localization);
  if (samples.positives.empty()) {
    results.gradients.zero_();
  } else {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "step_error", [&] {
      const Outputs<scalar_t> outputs = {results.values.data_ptr<scalar_t>(),
                                         results.gradients.data_ptr<scalar_t>(),
                                         results.localization_gradient.data_ptr<scalar_t>()};
      step_error_kernel(input.const_data_ptr<scalar_t>(), samples, per_positive, loss, delta,
                        outputs);
    });
  }
  return results.tensors();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  // values: (2,), the loss and its second part, 0 where it has none. gradients: (rows, S) of each
  // with respect to the logits, one row where there is one part. localization_gradient: (P,) of the
  // second part.
  m.def(
      "step_error(Tensor logits, Tensor targets, str loss, float delta, Tensor? localization)"
      " -> (Tensor values, Tensor gradients, Tensor localization_gradient)");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("step_error", &step_error); }

}  // namespace corrdet
