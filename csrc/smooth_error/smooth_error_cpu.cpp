#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "smooth_error/cells.h"
#include "smooth_error/direct_pairs.h"
#include "smooth_error/gradient_pass.h"
#include "smooth_error/smooth_error.h"
#include "smooth_error/sums_pass.h"

namespace corrdet {
namespace {

// The cells that samples may be summed in, so that all tables together take about 40 bytes per
// sample where they are not small anyway. With few pairs, taking them one by one is cheaper.
template <typename T>
int64_t most_cells(int64_t samples, int64_t positives) {
  constexpr int64_t bytes = kParts * sizeof(Powers<Degrees<T>::part>) + kSlots * sizeof(int32_t) +
                            4 * sizeof(Powers<Degrees<T>::cell>);
  return std::min(samples * positives / 4, std::max<int64_t>(samples * 40 / bytes, 2048));
}

// The positives sorted by their logits; none if a logit or IoU is not finite.
template <typename T>
Positives sort_positives(const T* logits, const Samples& samples, const std::vector<double>& ious,
                         double delta) {
  std::vector<double> unordered;
  for (const int64_t index : samples.positives) {
    unordered.push_back(static_cast<double>(logits[index]));
  }
  Positives positives{delta, {}, {}, {}, {}};
  if (!all_finite(unordered) || !all_finite(ious)) return positives;
  for (const int64_t k : ascending_order(unordered)) {
    positives.scores.push_back(unordered[k]);
    positives.edges.push_back(unordered[k] - delta);
    positives.indices.push_back(samples.positives[k]);
    if (!ious.empty()) positives.ious.push_back(ious[k]);
  }
  return positives;
}

// The weight of each positive's error, divided by its balance and by P.
std::vector<double> pair_shares(const Positives& positives, const Sums& sums,
                                const SmoothLoss& loss) {
  std::vector<double> shares;
  for (int64_t u = 0; u < positives.size(); ++u) {
    // As in the AP loss, a positive counts itself by 1; as the authors run APE, by sigma(0).
    double balance = sums.rank[u] + (positives.paired() ? 0.0 : 0.5);
    if (loss.balance == Balance::negatives) balance = std::max(sums.negatives[u], 1.0);
    const double weight = positives.paired() && loss.weight_by_iou ? positives.ious[u] : 1.0;
    shares.push_back(weight / balance / static_cast<double>(positives.size()));
  }
  return shares;
}

// The loss from the sums, "Revisiting AP Loss for Dense Object Detection", Eq. 8 and, of positives
// with IoUs, 9.
double pairwise_error(const Sums& sums, const std::vector<double>& shares, Distance distance) {
  const std::vector<double>& errors = distance == Distance::cross_entropy ? sums.loss : sums.error;
  double total = 0.0;
  for (size_t u = 0; u < shares.size(); ++u) total += shares[u] * errors[u];
  return total;
}

template <typename T>
bool finite_negatives(const T* logits, const Samples& samples) {
  for (int64_t i = 0; i < samples.size(); ++i) {
    if (samples.labels[i] == kNegative && !std::isfinite(logits[i])) return false;
  }
  return true;
}

template <typename T>
void smooth_error_kernel(const T* logits, const Samples& samples, const std::vector<double>& ious,
                         const SmoothLoss& loss, T* value, T* gradient) {
  const auto undefined = [&] {
    *value = std::numeric_limits<T>::quiet_NaN();
    std::fill_n(gradient, samples.size(), *value);
  };
  const Positives positives = sort_positives(logits, samples, ious, loss.delta);
  const int64_t count = positives.size();
  if (count == 0) return undefined();
  std::vector<int64_t> by_iou(count);
  std::iota(by_iou.begin(), by_iou.end(), 0);
  if (positives.paired()) by_iou = ascending_order(positives.ious);

  const int64_t most = most_cells<T>(samples.size(), count);
  const Cells cells(positives, loss.lam, Series<T>::saturated, most);
  std::optional<WindowBounds> windows;
  std::vector<int32_t> sample_bins;
  Sums sums(count);
  if (cells.usable()) {
    windows.emplace(positives, cells, Series<T>::saturated / loss.lam);
    sample_bins.resize(samples.size());
    auto bins = sum_bins(logits, samples, cells, sample_bins);
    if (bins.empty()) return undefined();
    const int64_t room = std::max<int64_t>(most / cells.cell_count(), 1);
    cell_sums<T>(positives, cells, *windows, std::move(bins), loss, by_iou, room, sums);
  } else {
    if (!finite_negatives(logits, samples)) return undefined();
    direct_sums(logits, samples, positives, loss.lam, sums);
  }

  const std::vector<double> shares = pair_shares(positives, sums, loss);
  *value = static_cast<T>(pairwise_error(sums, shares, loss.distance));

  std::vector<double> on_positives(count, 0.0);
  if (cells.usable()) {
    const auto polynomials =
        cell_gradients<T>(positives, cells, *windows, loss.lam, by_iou, shares, on_positives);
    evaluate_gradients(logits, cells, sample_bins, polynomials, gradient);
  } else {
    direct_gradients(logits, samples, positives, loss.lam, shares, gradient, on_positives);
  }
  for (int64_t u = 0; u < count; ++u) {
    gradient[positives.indices[u]] = static_cast<T>(on_positives[u] - shares[u] * sums.error[u]);
  }
}

std::tuple<at::Tensor, at::Tensor> smooth_error(const at::Tensor& logits, const at::Tensor& targets,
                                                c10::string_view distance, c10::string_view balance,
                                                double lam, double delta,
                                                const std::optional<at::Tensor>& ious,
                                                bool weight_by_iou) {
  const SmoothLoss loss =
      check_smooth_error(logits, targets, {distance.data(), distance.size()},
                         {balance.data(), balance.size()}, lam, delta, ious, weight_by_iou);
  const Samples samples = read_samples(targets, false);
  std::vector<double> wide_ious;
  if (ious) wide_ious = read_per_positive("ious", *ious, samples, true);
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  at::Tensor value = at::zeros({1}, input.options());
  at::Tensor gradient = at::empty({1, input.numel()}, input.options());
  if (samples.positives.empty()) {
    gradient.zero_();
  } else {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "smooth_error", [&] {
      smooth_error_kernel(input.const_data_ptr<scalar_t>(), samples, wide_ious, loss,
                          value.data_ptr<scalar_t>(), gradient.data_ptr<scalar_t>());
    });
  }
  return {value, gradient};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  // values: (1,). gradients: (1, S), with respect to the logits.
  m.def(
      "smooth_error(Tensor logits, Tensor targets, str distance, str balance, float lam,"
      " float delta, Tensor? ious, bool weight_by_iou) -> (Tensor values, Tensor gradients)");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("smooth_error", &smooth_error); }

}  // namespace corrdet
