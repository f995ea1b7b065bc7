#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "pairwise_error/pairwise_error.h"
#include "pairwise_error/samples_cpu.h"
#include "pairwise_error/sigmoid_series.h"
#include "pairwise_error/sorted_edges.h"

namespace corrdet {
namespace {

double sigmoid(double y) { return 1.0 / (1.0 + std::exp(-y)); }

double softplus(double y) { return std::max(y, 0.0) + std::log1p(std::exp(-std::abs(y))); }

// The positives in ascending order of their logits.
struct Positives {
  std::vector<double> scores, edges;  // edges: s_u - delta, above which samples count
  std::vector<double> ious;           // empty where pairs of positives are no errors
  std::vector<int64_t> places;        // among the samples

  int64_t size() const { return static_cast<int64_t>(scores.size()); }
  bool paired() const { return !ious.empty(); }
};

// What the losses need of each positive: sums over the samples that count.
struct Sums {
  explicit Sums(int64_t count) : rank(count), error(count), loss(count), negatives(count) {}
  std::vector<double> rank;       // sigmoids, of all samples
  std::vector<double> error;      // sigmoids, of its false positives
  std::vector<double> loss;       // softpluses / lambda, of the same
  std::vector<double> negatives;  // their number
};

// All pairs one by one. For few samples, and where logits are so far apart that there would be
// more cells than samples.
template <typename T>
void direct_sums(const T* logits, const Samples& samples, const Positives& positives, double lam,
                 Sums& sums) {
  const int64_t count = static_cast<int64_t>(samples.kinds.size());
  const double reach = Series<T>::saturated / lam;
  at::parallel_for(0, positives.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const double score = positives.scores[u], edge = positives.edges[u];
      double sigmoids = 0.0, softpluses = 0.0, counted = 0.0;
      for (int64_t i = 0; i < count; ++i) {
        const double x = static_cast<double>(logits[i]);
        if (samples.kinds[i] != kNegative || !(x > edge)) continue;
        counted += 1.0;
        const double distance = x - score;
        sigmoids += distance > reach ? 1.0 : sigmoid(lam * distance);
        softpluses += distance > reach ? distance : softplus(lam * distance) / lam;
      }
      sums.negatives[u] = counted;
      sums.error[u] = sums.rank[u] = sigmoids;
      sums.loss[u] = softpluses;
      for (int64_t v = 0; v < positives.size(); ++v) {
        if (!(positives.scores[v] > edge)) continue;
        const double distance = positives.scores[v] - score;
        const double value = sigmoid(lam * distance);
        sums.rank[u] += value;
        if (positives.paired() && positives.ious[v] < positives.ious[u]) {
          sums.error[u] += value;
          sums.loss[u] += softplus(lam * distance) / lam;
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
  at::parallel_for(
      0, static_cast<int64_t>(samples.kinds.size()), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const double x = static_cast<double>(logits[i]);
          double sum = 0.0;
          if (samples.kinds[i] == kNegative) {
            const auto& scores = positives.scores;
            int64_t u = std::lower_bound(scores.begin(), scores.end(), x - reach) - scores.begin();
            sum = totals[u];
            for (; u < positives.size() && positives.edges[u] < x; ++u) {
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
      for (int64_t u = 0; u < positives.size() && positives.edges[u] < x; ++u) {
        if (positives.ious[v] < positives.ious[u]) {
          on_positives[v] += shares[u] * sigmoid(lam * (x - positives.scores[u]));
        }
      }
    }
  });
}

// The line of logits in cells of equal width, kCellWidth / lambda. Only where positives need them:
// their windows, from the edge up to where the sigmoid is 1, are joined to runs of cells. Each run
// ends with an open cell that takes all up to the next run. Edges cut their cells into bins, so
// that no bin has an edge within.
class Cells {
 public:
  struct Place {
    int64_t cell;
    int64_t bin;
    double offset;  // from the centre of the cell, in cells
  };

  Cells(const Positives& positives, double lam, double saturated, int64_t most)
      : edges_(positives.edges), edge_count_(positives.size()), width_(kCellWidth / lam) {
    const double reach = saturated / lam;
    double end = -std::numeric_limits<double>::infinity();
    double cells = 0.0;
    const auto close_run = [&] {
      if (starts_.empty()) return;
      cells += std::floor((end - starts_.back()) * (1.0 / width_)) + 2.0;
    };
    for (int64_t u = 0; u < positives.size(); ++u) {
      if (edges_[u] > end + width_) {
        close_run();
        starts_.push_back(edges_[u]);
        first_cells_.push_back(static_cast<int64_t>(cells));
      }
      end = positives.scores[u] + reach;
      // A window below what the logits can tell, or more cells than are worth their memory.
      if (!(end - starts_.back() < static_cast<double>(most) * width_)) return;
    }
    close_run();
    if (!(cells < static_cast<double>(most))) return;
    first_cells_.push_back(static_cast<int64_t>(cells));
    usable_ = true;
    first_edges_.assign(kFine * cell_count() + 1, 0);
    for (const double edge : edges_) ++first_edges_[locate_fine(edge).fine + 1];
    edges_.insert(edges_.end(), kEdgePadding, std::numeric_limits<double>::infinity());
    for (size_t i = 1; i < first_edges_.size(); ++i) first_edges_[i] += first_edges_[i - 1];
  }

  bool usable() const { return usable_; }
  int64_t cell_count() const { return first_cells_.back(); }
  int64_t bin_count() const { return cell_count() + edge_count_; }
  double low() const { return starts_.front(); }
  double width() const { return width_; }

  int64_t first_bin(int64_t cell) const { return cell + first_edges_[kFine * cell]; }
  int64_t end_bin(int64_t cell) const { return cell + first_edges_[kFine * (cell + 1)] + 1; }

  double center(int64_t cell) const {
    const int64_t run =
        std::upper_bound(first_cells_.begin(), first_cells_.end(), cell) - first_cells_.begin() - 1;
    return starts_[run] + (static_cast<double>(cell - first_cells_[run]) + 0.5) * width_;
  }

  // Of a finite value above low().
  Place locate(double value) const {
    const Fine place = locate_fine(value);
    const int64_t j = count_edges_below(edges_.data(), first_edges_[place.fine],
                                        first_edges_[place.fine + 1], value);
    const int64_t cell = place.fine / kFine;
    return {cell, cell + j, place.offset};
  }

  // The cell of an edge, and the first bin of what is above it.
  Place locate_edge(int64_t u) const {
    const Fine place = locate_fine(edges_[u]);
    const auto begin = edges_.begin();
    const auto above = std::upper_bound(begin + first_edges_[place.fine],
                                        begin + first_edges_[place.fine + 1], edges_[u]);
    const int64_t cell = place.fine / kFine;
    return {cell, cell + (above - begin), place.offset};
  }

  // The first cell that lies above a value within a run.
  int64_t cell_after(double value) const { return locate_fine(value).fine / kFine + 1; }

 private:
  // Cells are searched in parts, most of which have no edge.
  static constexpr int64_t kFine = 32;
  struct Fine {
    int64_t fine;
    double offset;
  };

  // Monotonic, also as rounded: what is in a higher part is higher.
  Fine locate_fine(double value) const {
    size_t run = 0;
    if (starts_.size() > 1) {
      run = std::lower_bound(starts_.begin(), starts_.end(), value) - starts_.begin();
      // A run's start is itself an edge of its first cell.
      if (run == starts_.size() || starts_[run] != value) --run;
    }
    const double place = (value - starts_[run]) * (1.0 / width_);
    const int64_t last = first_cells_[run + 1] - first_cells_[run] - 1;
    int64_t fine = kFine * last;
    if (place < static_cast<double>(last)) fine = static_cast<int64_t>(place * kFine);
    return {kFine * first_cells_[run] + fine, place - static_cast<double>(fine / kFine) - 0.5};
  }

  std::vector<double> edges_;  // and the padding
  int64_t edge_count_;
  double width_;
  std::vector<double> starts_;        // of the runs
  std::vector<int64_t> first_cells_;  // of the runs, and the number of all cells
  std::vector<int32_t> first_edges_;  // of the parts of cells
  bool usable_ = false;
};

// Sums over the samples of a bin or cell of the powers of their offsets; or, for the gradient,
// coefficients of a polynomial in the offset.
template <int degree>
using Powers = std::array<double, degree + 1>;

template <int degree>
void add_sample(double offset, Powers<degree>& powers) {
  double power = 1.0;
  for (int k = 0; k <= degree; ++k) {
    powers[k] += power;
    power *= offset;
  }
}

template <int degree>
double dot(const double* coefficients, const Powers<degree>& powers) {
  double sum = 0.0;
  for (int k = 0; k <= degree; ++k) sum += coefficients[k] * powers[k];
  return sum;
}

template <int degree>
void add(const Powers<degree>& powers, Powers<degree>& sum) {
  for (int k = 0; k <= degree; ++k) sum[k] += powers[k];
}

// Sums over prefixes of an array that changes (Fenwick).
template <int channels>
class PrefixSums {
 public:
  explicit PrefixSums(int64_t count) : sums_(count + 1) {}

  void insert(int64_t place, const std::array<double, channels>& values) {
    for (int64_t i = place + 1; i < static_cast<int64_t>(sums_.size()); i += i & -i) {
      for (int channel = 0; channel < channels; ++channel) sums_[i][channel] += values[channel];
    }
  }

  std::array<double, channels> before(int64_t place) const {
    std::array<double, channels> sum{};
    for (int64_t i = place; i > 0; i -= i & -i) {
      for (int channel = 0; channel < channels; ++channel) sum[channel] += sums_[i][channel];
    }
    return sum;
  }

 private:
  std::vector<std::array<double, channels>> sums_;
};

// The cells that samples may be summed in, so that all tables together take about 40 bytes per
// sample. With fewer samples than cells, pairs one by one are cheaper too.
template <int degree>
int64_t most_cells(int64_t samples) {
  return samples * 4 / static_cast<int64_t>(sizeof(Powers<degree>));
}

// Samples summed up per bin, and from there per cell and over everything above a cell.
template <int degree>
struct Table {
  explicit Table(const Cells& cells) : bins(cells.bin_count()) {}

  void finish(const Cells& cells) {
    totals.resize(cells.cell_count());
    counts.assign(cells.cell_count() + 1, 0.0);
    values.assign(cells.cell_count() + 1, 0.0);
    origin = cells.center(cells.cell_count() - 1);
    for (int64_t c = cells.cell_count() - 1; c >= 0; --c) {
      for (int64_t bin = cells.end_bin(c) - 2; bin >= cells.first_bin(c); --bin) {
        add<degree>(bins[bin + 1], bins[bin]);
      }
      totals[c] = bins[cells.first_bin(c)];
      counts[c] = counts[c + 1] + totals[c][0];
      values[c] = values[c + 1] +
                  (totals[c][0] * (cells.center(c) - origin) + totals[c][1] * cells.width());
    }
  }

  std::vector<Powers<degree>> bins;    // after finish: of this bin and those above in its cell
  std::vector<Powers<degree>> totals;  // of cells
  std::vector<double> counts, values;  // of a cell and all above: samples, and logits from origin
  double origin = 0.0;
};

// False if a logit that counts is not finite.
template <typename T, int degree>
bool add_negatives(const T* logits, const Samples& samples, const Cells& cells,
                   Table<degree>& table) {
  const int64_t count = static_cast<int64_t>(samples.kinds.size());
  const int64_t bytes = cells.bin_count() * static_cast<int64_t>(sizeof(Powers<degree>));
  const int64_t chunks = count_chunks(count, bytes);
  std::vector<std::vector<Powers<degree>>> partial(chunks);
  std::vector<char> finite(chunks, 1);
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      std::vector<Powers<degree>>& bins = partial[chunk];
      bins.resize(cells.bin_count());
      const int8_t* const kinds = samples.kinds.data();
      const double low = cells.low();
      bool all_finite = true;
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) {
        if (kinds[i] != kNegative) continue;
        const double x = static_cast<double>(logits[i]);
        all_finite &= std::abs(x) <= std::numeric_limits<double>::max();
        if (!(x > low) || !all_finite) continue;
        const Cells::Place place = cells.locate(x);
        add_sample<degree>(place.offset, bins[place.bin]);
      }
      finite[chunk] = all_finite;
    }
  });
  for (const auto& bins : partial) {
    for (int64_t bin = 0; bin < cells.bin_count(); ++bin) add<degree>(bins[bin], table.bins[bin]);
  }
  return std::all_of(finite.begin(), finite.end(), [](char value) { return value != 0; });
}

// exp(-y) at the centres of successive cells.
class DecayingExponential {
 public:
  explicit DecayingExponential(double y) : y_(y), value_(start(y)) {}
  double value() const { return value_; }
  double y() const { return y_; }

  void step() {
    static const double factor = std::exp(-kCellWidth);
    y_ += kCellWidth;
    // Anew from time to time, before rounding adds up.
    value_ = (++steps_ & 15) == 0 ? start(y_) : value_ * factor;
  }

 private:
  static double start(double y) { return std::exp(std::min(-y, 700.0)); }
  double y_, value_;
  int steps_ = 0;
};

template <typename T, int degree>
void cell_sums(const Positives& positives, const Cells& cells, const Table<degree>& negatives,
               double lam, const std::vector<int64_t>& by_iou, int64_t samples_count, Sums& sums) {
  const int64_t count = positives.size();
  const double reach = Series<T>::saturated / lam;
  // All samples, for the rank.
  Table<degree> everything(cells);
  std::vector<Cells::Place> places(count);
  for (int64_t v = 0; v < count; ++v) {
    places[v] = cells.locate(positives.scores[v]);
    add_sample<degree>(places[v].offset, everything.bins[places[v].bin]);
  }
  everything.finish(cells);
  for (size_t i = 0; i < everything.bins.size(); ++i) {
    add<degree>(negatives.bins[i], everything.bins[i]);
  }
  for (size_t i = 0; i < everything.totals.size(); ++i) {
    add<degree>(negatives.totals[i], everything.totals[i]);
  }
  for (size_t i = 0; i < everything.counts.size(); ++i) {
    everything.counts[i] += negatives.counts[i];
  }

  // In order of IoU, each task adding to the negatives the positives of lower IoU. Additions are in
  // that order too, whatever the number of tasks.
  const int64_t room = std::max<int64_t>(most_cells<degree>(samples_count) / cells.bin_count(), 1);
  const int64_t tasks =
      std::min<int64_t>({at::get_num_threads(), room, std::max<int64_t>(count / 64, 1)});
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      std::vector<Powers<degree>> added_bins, totals = negatives.totals;
      PrefixSums<2> added(positives.paired() ? cells.cell_count() : 0);
      if (positives.paired()) added_bins.resize(cells.bin_count());
      int64_t added_count = 0;
      for (int64_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
        const int64_t u = by_iou[i];
        while (positives.paired() && positives.ious[by_iou[added_count]] < positives.ious[u]) {
          const int64_t v = by_iou[added_count++];
          add_sample<degree>(places[v].offset, added_bins[places[v].bin]);
          add_sample<degree>(places[v].offset, totals[places[v].cell]);
          added.insert(places[v].cell, {1.0, positives.scores[v] - negatives.origin});
        }
        const double score = positives.scores[u];
        const Cells::Place edge = cells.locate_edge(u);
        const int64_t end = cells.cell_after(score + reach);
        Powers<degree> errors{}, all{};
        if (edge.bin < cells.end_bin(edge.cell)) {
          errors = negatives.bins[edge.bin];
          all = everything.bins[edge.bin];
          for (int64_t bin = edge.bin; positives.paired() && bin < cells.end_bin(edge.cell);
               ++bin) {
            add<degree>(added_bins[bin], errors);
          }
        }
        sums.negatives[u] = negatives.counts[edge.cell + 1];
        if (edge.bin < cells.end_bin(edge.cell)) {
          sums.negatives[u] += negatives.bins[edge.bin][0];
        }
        double rank = 0.0, error = 0.0, loss = 0.0;
        DecayingExponential decay(lam * (cells.center(edge.cell) - score));
        for (int64_t c = edge.cell; c < end; ++c, decay.step()) {
          const Powers<degree>& error_powers = c == edge.cell ? errors : totals[c];
          const Powers<degree>& rank_powers = c == edge.cell ? all : everything.totals[c];
          if (rank_powers[0] == 0.0) continue;
          const double value = 1.0 / (1.0 + decay.value());
          double coefficients[degree + 1];
          sigmoid_series<degree>(value, coefficients);
          rank += dot<degree>(coefficients, rank_powers);
          if (error_powers[0] == 0.0) continue;
          error += dot<degree>(coefficients, error_powers);
          const double y = decay.y();
          const double integral =
              y > 0.0 ? y + std::log1p(decay.value()) : std::log1p(1.0 / decay.value());
          double primitive[degree + 1];
          softplus_series<degree>(integral, coefficients, primitive);
          loss += dot<degree>(primitive, error_powers);
        }
        // Beyond, the sigmoid is 1 and the softplus is y.
        double beyond = negatives.counts[end];
        double distance =
            negatives.values[end] - negatives.counts[end] * (score - negatives.origin);
        if (positives.paired()) {
          const auto all_added = added.before(cells.cell_count());
          const auto below = added.before(end);
          beyond += all_added[0] - below[0];
          distance +=
              (all_added[1] - below[1]) - (all_added[0] - below[0]) * (score - negatives.origin);
        }
        sums.rank[u] = rank + everything.counts[end];
        sums.error[u] = error + beyond;
        sums.loss[u] = loss / lam + distance;
      }
    }
  });
}

// For each bin the polynomial of the sum over positives of shares[u] * sigmoid(lam (x - s_u)); and
// for each positive v that sum over the positives of higher IoU.
template <typename T, int degree>
std::vector<Powers<degree>> cell_gradients(const Positives& positives, const Cells& cells,
                                           double lam, const std::vector<int64_t>& by_iou,
                                           const std::vector<double>& shares,
                                           std::vector<double>& on_positives) {
  const int64_t count = positives.size();
  const double reach = Series<T>::saturated / lam;
  std::vector<Cells::Place> edges(count), places(count);
  std::vector<int64_t> ends(count);
  std::vector<double> saturated(cells.cell_count() + 1, 0.0);
  for (int64_t u = 0; u < count; ++u) {
    edges[u] = cells.locate_edge(u);
    places[u] = cells.locate(positives.scores[u]);
    ends[u] = cells.cell_after(positives.scores[u] + reach);
    saturated[ends[u]] += shares[u];
  }
  for (int64_t c = 0; c < cells.cell_count(); ++c) saturated[c + 1] += saturated[c];
  std::vector<Powers<degree>> bins(cells.bin_count(), Powers<degree>{});
  std::vector<Powers<degree>> totals(cells.cell_count(), Powers<degree>{});
  // Each task has its own cells, and goes through all positives from the highest IoU down.
  const int64_t tasks =
      std::min<int64_t>(2 * at::get_num_threads(), std::max<int64_t>(count / 64, 1));
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t first_cell = cells.cell_count() * task / tasks;
      const int64_t end_cell = cells.cell_count() * (task + 1) / tasks;
      PrefixSums<1> added(positives.paired() ? cells.cell_count() + 1 : 0);
      int64_t added_count = count;
      const auto add_positive = [&](int64_t u) {
        if (positives.paired()) added.insert(ends[u], {shares[u]});
        const int64_t begin = std::max(edges[u].cell, first_cell);
        const int64_t end = std::min(ends[u], end_cell);
        if (begin >= end) return;
        DecayingExponential decay(lam * (cells.center(begin) - positives.scores[u]));
        for (int64_t c = begin; c < end; ++c, decay.step()) {
          Powers<degree> coefficients;
          sigmoid_series<degree>(1.0 / (1.0 + decay.value()), coefficients.data());
          for (double& coefficient : coefficients) coefficient *= shares[u];
          if (c != edges[u].cell) {
            add<degree>(coefficients, totals[c]);
            continue;
          }
          for (int64_t bin = edges[u].bin; bin < cells.end_bin(c); ++bin) {
            add<degree>(coefficients, bins[bin]);
          }
        }
      };
      for (int64_t i = count - 1; positives.paired() && i >= 0; --i) {
        const int64_t v = by_iou[i];
        while (positives.ious[by_iou[added_count - 1]] > positives.ious[v]) {
          add_positive(by_iou[--added_count]);
        }
        const Cells::Place& place = places[v];
        if (place.cell < first_cell || place.cell >= end_cell) continue;
        double powers[degree + 1] = {1.0};
        for (int k = 0; k < degree; ++k) powers[k + 1] = powers[k] * place.offset;
        on_positives[v] = added.before(place.cell + 1)[0] +
                          dot<degree>(powers, totals[place.cell]) +
                          dot<degree>(powers, bins[place.bin]);
      }
      while (added_count > 0) add_positive(by_iou[--added_count]);
      for (int64_t c = first_cell; c < end_cell; ++c) {
        for (int64_t bin = cells.first_bin(c); bin < cells.end_bin(c); ++bin) {
          add<degree>(totals[c], bins[bin]);
          bins[bin][0] += saturated[c];
        }
      }
    }
  });
  return bins;
}

template <typename T, int degree>
void negatives_gradient(const T* logits, const Samples& samples, const Cells& cells,
                        const std::vector<Powers<degree>>& bins, T* gradient) {
  const double low = cells.low();
  at::parallel_for(0, static_cast<int64_t>(samples.kinds.size()), kSampleGrain,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const double x = static_cast<double>(logits[i]);
                       if (samples.kinds[i] != kNegative || !(x > low)) {
                         gradient[i] = T(0);
                         continue;
                       }
                       const Cells::Place place = cells.locate(x);
                       const Powers<degree>& polynomial = bins[place.bin];
                       // Open cells have a constant alone.
                       double value = 0.0;
                       if (std::abs(place.offset) < 1.0) {
                         for (int k = degree; k > 0; --k) {
                           value = (value + polynomial[k]) * place.offset;
                         }
                       }
                       gradient[i] = static_cast<T>(value + polynomial[0]);
                     }
                   });
}

template <typename T>
void smooth_error_kernel(const T* logits, const Samples& samples, const std::vector<double>& ious,
                         const SmoothLoss& loss, T* value, T* gradient) {
  constexpr int degree = Series<T>::degree;
  const int64_t samples_count = static_cast<int64_t>(samples.kinds.size());
  const int64_t count = static_cast<int64_t>(samples.positives.size());
  const auto undefined = [&] {
    *value = std::numeric_limits<T>::quiet_NaN();
    std::fill_n(gradient, samples_count, *value);
  };
  std::vector<double> unordered(count);
  for (int64_t k = 0; k < count; ++k) {
    unordered[k] = static_cast<double>(logits[samples.positives[k]]);
  }
  if (!all_finite(unordered) || !all_finite(ious)) return undefined();
  Positives positives;
  for (const int64_t k : ascending_order(unordered)) {
    positives.scores.push_back(unordered[k]);
    positives.edges.push_back(unordered[k] - loss.delta);
    positives.places.push_back(samples.positives[k]);
    if (!ious.empty()) positives.ious.push_back(ious[k]);
  }
  std::vector<int64_t> by_iou(count);
  std::iota(by_iou.begin(), by_iou.end(), 0);
  if (positives.paired()) by_iou = ascending_order(positives.ious);

  const Cells cells(positives, loss.lam, Series<T>::saturated, most_cells<degree>(samples_count));
  Sums sums(count);
  if (cells.usable()) {
    Table<degree> negatives(cells);
    if (!add_negatives<T, degree>(logits, samples, cells, negatives)) return undefined();
    negatives.finish(cells);
    cell_sums<T, degree>(positives, cells, negatives, loss.lam, by_iou, samples_count, sums);
  } else {
    for (int64_t i = 0; i < samples_count; ++i) {
      if (samples.kinds[i] == kNegative && !std::isfinite(logits[i])) return undefined();
    }
    direct_sums(logits, samples, positives, loss.lam, sums);
  }

  std::vector<double> shares(count);
  double total = 0.0;
  for (int64_t u = 0; u < count; ++u) {
    // As in the AP loss, a positive counts itself by 1; as the authors run APE, by sigma(0).
    double balance = sums.rank[u] + (positives.paired() ? 0.0 : 0.5);
    if (loss.balance_negatives) balance = std::max(sums.negatives[u], 1.0);
    const double weight = positives.paired() && loss.weight_by_iou ? positives.ious[u] : 1.0;
    shares[u] = weight / balance / static_cast<double>(count);
    total += shares[u] * (loss.cross_entropy ? sums.loss[u] : sums.error[u]);
  }
  *value = static_cast<T>(total);

  std::vector<double> on_positives(count, 0.0);
  if (cells.usable()) {
    const auto bins =
        cell_gradients<T, degree>(positives, cells, loss.lam, by_iou, shares, on_positives);
    negatives_gradient<T, degree>(logits, samples, cells, bins, gradient);
  } else {
    direct_gradients(logits, samples, positives, loss.lam, shares, gradient, on_positives);
  }
  for (int64_t u = 0; u < count; ++u) {
    gradient[positives.places[u]] = static_cast<T>(on_positives[u] - shares[u] * sums.error[u]);
  }
}

std::tuple<at::Tensor, at::Tensor> smooth_error(const at::Tensor& logits, const at::Tensor& targets,
                                                c10::string_view distance, c10::string_view balance,
                                                double lam, double delta,
                                                const std::optional<at::Tensor>& ious,
                                                bool weight_by_iou) {
  check_samples(logits, targets);
  const SmoothLoss loss =
      parse_smooth_loss({distance.data(), distance.size()}, {balance.data(), balance.size()}, lam,
                        delta, weight_by_iou);
  const Samples samples = read_samples(targets, false);
  std::vector<double> graded;
  if (ious) {
    check_per_positive("ious", *ious, logits);
    graded = read_per_positive("ious", *ious, samples, true);
  }
  const at::Tensor input = logits.to(result_type(logits)).contiguous();
  at::Tensor value = at::zeros({1}, input.options());
  at::Tensor gradient = at::empty({1, input.numel()}, input.options());
  if (samples.positives.empty()) {
    gradient.zero_();
  } else {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "smooth_error", [&] {
      smooth_error_kernel(input.const_data_ptr<scalar_t>(), samples, graded, loss,
                          value.data_ptr<scalar_t>(), gradient.data_ptr<scalar_t>());
    });
  }
  return {value, gradient};
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("smooth_error", &smooth_error); }

}  // namespace corrdet
