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
#include <utility>
#include <vector>

#include "common/simd.h"
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

// The degrees and parts that sums over samples take. Samples are summed in parts of cells, which do
// with fewer powers than whole cells: half a part leaves (1 / 32)^(part_degree + 1) /
// (part_degree + 1)!, 4e-8 and 6e-15.
constexpr int kParts = 8;  // of a cell
constexpr int kFine = 32;  // where edges are searched for, most of which have none

template <typename T>
struct Degrees {
  static constexpr int cell = Series<T>::degree;
  static constexpr int part = (cell + 1) / 2;
};

// Sums over samples of the powers of their offsets; or, for the gradient, coefficients of a
// polynomial in the offset. Offsets are from the centre of the cell or part, in widths of it.
template <int degree, typename T = double>
using Powers = std::array<T, degree + 1>;

template <int degree>
CORRDET_INLINE void add_sample(double offset, Powers<degree>& powers) {
  // In pairs, for processors that add two at once.
  const double square = offset * offset;
  double pair[2] = {1.0, offset};
  for (int k = 0; k < degree; k += 2) {
    for (int i = 0; i < 2; ++i) powers[k + i] += pair[i];
    for (int i = 0; i < 2; ++i) pair[i] *= square;
  }
  if (degree % 2 == 0) powers[degree] += pair[0];
}

template <int degree>
double dot(const Powers<degree>& coefficients, const Powers<degree>& powers) {
  double sum = 0.0;
  for (int k = 0; k <= degree; ++k) sum += coefficients[k] * powers[k];
  return sum;
}

template <int degree>
void add(const Powers<degree>& powers, Powers<degree>& sum) {
  for (int k = 0; k <= degree; ++k) sum[k] += powers[k];
}

template <int degree, typename T>
CORRDET_INLINE T evaluate(const Powers<degree, T>& polynomial, T offset) {
  T value = polynomial[degree];
  for (int k = degree; k > 0; --k) value = value * offset + polynomial[k - 1];
  return value;
}

// From offsets z in a part of a cell to offsets in the cell, z / kParts + shift: the coefficients
// of z^j in the powers of those.
template <int degree, int part_degree>
class PartOfCell {
 public:
  static const PartOfCell& at(int part) {
    static const std::array<PartOfCell, kParts> all = [] {
      std::array<PartOfCell, kParts> parts{};
      for (int p = 0; p < kParts; ++p) parts[p].expand((p + 0.5) / kParts - 0.5);
      return parts;
    }();
    return all[part];
  }

  void add_powers(const Powers<part_degree>& powers, Powers<degree>& sum) const {
    for (int k = 0; k <= degree; ++k) {
      for (int j = 0; j <= std::min(k, part_degree); ++j) sum[k] += rows_[k][j] * powers[j];
    }
  }

  template <typename T>
  void restrict_polynomial(const Powers<degree>& polynomial, Powers<part_degree, T>& result) const {
    Powers<part_degree> sum{};
    for (int k = 0; k <= degree; ++k) {
      for (int j = 0; j <= std::min(k, part_degree); ++j) sum[j] += rows_[k][j] * polynomial[k];
    }
    for (int j = 0; j <= part_degree; ++j) result[j] = static_cast<T>(sum[j]);
  }

 private:
  void expand(double shift) {
    rows_[0][0] = 1.0;
    for (int k = 1; k <= degree; ++k) {
      for (int j = 0; j <= part_degree; ++j) {
        rows_[k][j] = rows_[k - 1][j] * shift + (j > 0 ? rows_[k - 1][j - 1] / kParts : 0.0);
      }
    }
  }

  std::array<Powers<part_degree>, degree + 1> rows_;
};

// Where a value is in a run of cells: in which place of `scale` per unit, counted from the run's
// start, and how far from the centre of its part, in parts. All from `last` on is one place, and
// what is below the start is in the first.
struct Fine {
  int32_t fine;
  double offset;
};

constexpr int kFinePerPart = kFine / kParts;

CORRDET_INLINE Fine locate_in_run(double value, double start, double scale, double last) {
  double place = (value - start) * scale;
  place = place > 0.0 ? place : 0.0;
  const int32_t fine = static_cast<int32_t>(place < last ? place : last);
  return {fine, place * (1.0 / kFinePerPart) - static_cast<double>(fine / kFinePerPart) - 0.5};
}

template <typename T>
CORRDET_SIMD void locate_in_run(const T* __restrict__ values, int64_t count, double start,
                                double scale, double last, int32_t* __restrict__ fine,
                                double* __restrict__ offsets) {
  for (int64_t i = 0; i < count; ++i) {
    const Fine place = locate_in_run(static_cast<double>(values[i]), start, scale, last);
    fine[i] = place.fine;
    offsets[i] = place.offset;
  }
}

template <typename T>
CORRDET_SIMD void find_bins(const double* __restrict__ edges,
                            const int32_t* __restrict__ first_edges, const T* __restrict__ values,
                            int64_t count, int32_t* __restrict__ bins) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = first_edges[bins[i]], end = first_edges[bins[i] + 1];
    const int64_t below = count_edges_below(edges, begin, end, static_cast<double>(values[i]));
    bins[i] = bins[i] / kFinePerPart + static_cast<int32_t>(below);
  }
}

// The line of logits in cells of equal width, kCellWidth / lambda. Only where positives need them:
// their windows, from the edge up to where the sigmoid is 1, are joined to runs of cells. Each run
// ends with an open cell that takes all up to the next run. Edges cut the parts of their cells into
// bins, so that no bin has an edge within.
class Cells {
 public:
  struct Place {
    int64_t cell;
    double offset;
  };

  Cells(const Positives& positives, double lam, double saturated, int64_t most)
      : edges_(positives.edges), width_(kCellWidth / lam) {
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
    for (const double edge : positives.edges) ++first_edges_[locate_fine(edge).fine + 1];
    edges_.insert(edges_.end(), kEdgePadding, std::numeric_limits<double>::infinity());
    for (size_t i = 1; i < first_edges_.size(); ++i) first_edges_[i] += first_edges_[i - 1];
  }

  bool usable() const { return usable_; }
  int64_t cell_count() const { return first_cells_.back(); }
  int64_t bin_count() const { return kParts * cell_count() + first_edges_.back(); }
  double low() const { return starts_.front(); }
  double width() const { return width_; }

  // The number of edges below a part; its first bin is that many after the part's own number.
  int64_t first_edge(int64_t part) const { return first_edges_[kFinePerPart * part]; }

  double center(int64_t cell) const {
    const int64_t run = run_of(cell);
    return starts_[run] + (static_cast<double>(cell - first_cells_[run]) + 0.5) * width_;
  }

  bool is_open(int64_t cell) const { return cell + 1 == first_cells_[run_of(cell) + 1]; }

  // Of a finite value above low(), or of an edge.
  Place locate(double value) const {
    const Fine place = locate_fine(value);
    const double part = static_cast<double>(place.fine % kFine / kFinePerPart);
    return {place.fine / kFine, (part + 0.5 + place.offset) / kParts - 0.5};
  }

  // The first cell that lies above a value within a run.
  int64_t cell_after(double value) const { return locate(value).cell + 1; }

  // Places of any values, and their offsets in parts.
  template <typename T>
  void locate(const T* values, int64_t count, int32_t* places, double* offsets) const {
    if (starts_.size() == 1) {
      locate_in_run(values, count, starts_[0], kFine / width_,
                    static_cast<double>(kFine * (cell_count() - 1)), places, offsets);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const Fine place = locate_fine(static_cast<double>(values[i]));
        places[i] = place.fine;
        offsets[i] = place.offset;
      }
    }
  }

  // From places to bins. What is not above low() is in bin 0, below all edges.
  template <typename T>
  void find_bins(const T* values, int64_t count, int32_t* places) const {
    corrdet::find_bins(edges_.data(), first_edges_.data(), values, count, places);
  }

 private:
  // Monotonic, also as rounded: what is in a higher place is higher.
  Fine locate_fine(double value) const {
    int64_t run = 0;
    if (starts_.size() > 1) {
      run = std::upper_bound(starts_.begin(), starts_.end(), value) - starts_.begin();
      run = std::max<int64_t>(run - 1, 0);
    }
    const int64_t first = first_cells_[run], last = first_cells_[run + 1] - first - 1;
    Fine place =
        locate_in_run(value, starts_[run], kFine / width_, static_cast<double>(kFine * last));
    place.fine += static_cast<int32_t>(kFine * first);
    return place;
  }

  int64_t run_of(int64_t cell) const {
    return std::upper_bound(first_cells_.begin(), first_cells_.end(), cell) - first_cells_.begin() -
           1;
  }

  std::vector<double> edges_;  // and the padding
  double width_;
  std::vector<double> starts_;        // of the runs
  std::vector<int64_t> first_cells_;  // of the runs, and the number of all cells
  std::vector<int32_t> first_edges_;  // of the places
  bool usable_ = false;
};

// Values of cells, a row for each power, for loops over several cells at once.
constexpr int kLanes = 4;

template <int degree>
class CellPowers {
 public:
  explicit CellPowers(int64_t cells) : stride_(cells + kLanes), data_((degree + 1) * stride_) {}

  int64_t stride() const { return stride_; }
  double* at(int64_t cell) { return data_.data() + cell; }
  const double* at(int64_t cell) const { return data_.data() + cell; }
  double count(int64_t cell) const { return data_[cell]; }

  Powers<degree> operator[](int64_t cell) const {
    Powers<degree> powers;
    for (int k = 0; k <= degree; ++k) powers[k] = data_[k * stride_ + cell];
    return powers;
  }

  void add(int64_t cell, const Powers<degree>& powers) {
    for (int k = 0; k <= degree; ++k) data_[k * stride_ + cell] += powers[k];
  }

 private:
  int64_t stride_;
  std::vector<double> data_;
};

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

// The negatives summed up: per cell, above each edge within its cell, and over all above a cell.
template <typename T>
struct Table {
  static constexpr int degree = Degrees<T>::cell, part_degree = Degrees<T>::part;

  Table(const Cells& cells, const std::vector<Powers<part_degree>>& bins, int64_t edges)
      : totals(cells.cell_count()),
        above(edges),
        counts(cells.cell_count() + 1),
        values(cells.cell_count() + 1),
        origin(cells.center(cells.cell_count() - 1)) {
    for (int64_t c = cells.cell_count() - 1; c >= 0; --c) {
      Powers<degree> sum{};
      for (int p = kParts - 1; p >= 0; --p) {
        const auto& part = PartOfCell<degree, part_degree>::at(p);
        const int64_t first = kParts * c + p;
        Powers<part_degree> here{};
        for (int64_t u = cells.first_edge(first + 1) - 1; u >= cells.first_edge(first); --u) {
          add<part_degree>(bins[first + u + 1], here);
          above[u] = sum;
          part.add_powers(here, above[u]);
        }
        add<part_degree>(bins[first + cells.first_edge(first)], here);
        part.add_powers(here, sum);
      }
      counts[c] = counts[c + 1] + sum[0];
      values[c] = values[c + 1] + (sum[0] * (cells.center(c) - origin) + sum[1] * cells.width());
      // An open cell has no bounds, so that its powers say nothing and may overflow.
      if (cells.is_open(c)) std::fill(sum.begin() + 1, sum.end(), 0.0);
      totals.add(c, sum);
    }
  }

  CellPowers<degree> totals;
  std::vector<Powers<degree>> above;
  std::vector<double> counts, values;  // of a cell and all above: samples, and logits from origin
  double origin;
};

// Samples that are located together.
constexpr int64_t kBlock = 512;

// Which samples are negatives above `low`; false if a negative's logit is not finite.
template <typename T>
CORRDET_SIMD bool find_counted(const T* __restrict__ logits, const int8_t* __restrict__ kinds,
                               int64_t count, T low, uint8_t* __restrict__ counted) {
  constexpr T highest = std::numeric_limits<T>::max();
  uint8_t faults = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t negative = kinds[i] == kNegative;
    const uint8_t above_all = !(logits[i] <= highest), below_all = !(logits[i] >= -highest);
    counted[i] = negative & static_cast<uint8_t>(logits[i] > low);
    faults |= negative & (above_all | below_all);
  }
  return faults == 0;
}

template <int degree>
CORRDET_SIMD void add_samples(const double* __restrict__ offsets, const int32_t* __restrict__ bins,
                              int64_t count, Powers<degree>* __restrict__ table) {
  for (int64_t i = 0; i < count; ++i) add_sample<degree>(offsets[i], table[bins[i]]);
}

// Sums over the negatives of each bin; none if a negative's logit is not finite. `bin_of` receives
// the bins of the samples, 0 where they do not count.
template <typename T, int degree>
std::vector<Powers<degree>> sum_bins(const T* logits, const Samples& samples, const Cells& cells,
                                     std::vector<int32_t>& bin_of) {
  const int64_t count = static_cast<int64_t>(samples.kinds.size());
  const int64_t bytes = cells.bin_count() * static_cast<int64_t>(sizeof(Powers<degree>));
  const int64_t chunks = count_chunks(count, bytes);
  std::vector<std::vector<Powers<degree>>> partial(chunks);
  std::vector<char> finite(chunks, 1);
  // A logit is above the lowest edge where it is above that in its own type, rounded down.
  T low = static_cast<T>(cells.low());
  if (low > cells.low()) low = std::nextafter(low, -std::numeric_limits<T>::infinity());
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    std::array<uint8_t, kBlock> is_counted;
    std::array<T, kBlock> counted;
    std::array<int32_t, kBlock> bins, samples_of;
    std::array<double, kBlock> offsets;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      partial[chunk].resize(cells.bin_count());
      const int64_t end = count * (chunk + 1) / chunks;
      for (int64_t begin = count * chunk / chunks; finite[chunk] && begin < end; begin += kBlock) {
        const int64_t size = std::min(kBlock, end - begin);
        finite[chunk] =
            find_counted(logits + begin, &samples.kinds[begin], size, low, is_counted.data());
        int64_t found = 0;
        for (int64_t i = 0; i < size; ++i) {
          counted[found] = logits[begin + i];
          samples_of[found] = static_cast<int32_t>(i);
          found += is_counted[i];
        }
        cells.locate(counted.data(), found, bins.data(), offsets.data());
        cells.find_bins(counted.data(), found, bins.data());
        for (int64_t i = 0; i < found; ++i) bin_of[begin + samples_of[i]] = bins[i];
        add_samples<degree>(offsets.data(), bins.data(), found, partial[chunk].data());
      }
    }
  });
  if (!std::all_of(finite.begin(), finite.end(), [](char value) { return value != 0; })) return {};
  at::parallel_for(0, cells.bin_count(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      for (int64_t bin = begin; bin < end; ++bin) add<degree>(partial[chunk][bin], partial[0][bin]);
    }
  });
  return std::move(partial[0]);
}

// exp(-y) and the sigmoid of y at cells in a row; `factors` are exp(-kCellWidth i).
CORRDET_SIMD void decay_from(double decay, const double* __restrict__ factors, int64_t count,
                             double* __restrict__ decays, double* __restrict__ sigmoids) {
  for (int64_t i = 0; i < count; ++i) {
    decays[i] = decay * factors[i];
    sigmoids[i] = 1.0 / (1.0 + decays[i]);
  }
}

// exp(-y) and the sigmoid of y at the centres of the cells of a positive's window. In whole groups
// of kLanes cells, with a sigmoid of 0 in what is not asked for, as then its series is 0 too.
class Window {
 public:
  explicit Window(int64_t cells) : decays_(cells + 2 * kLanes), sigmoids_(cells + 2 * kLanes) {}

  // Of the cells [begin, end) of a window that starts at `cell`, whose centre is at y. The same
  // whatever `begin` is, to the bit.
  void fill(int64_t cell, double y, int64_t begin, int64_t end) {
    static const std::array<double, kStretch> factors = [] {
      std::array<double, kStretch> values{};
      for (int64_t i = 0; i < kStretch; ++i) values[i] = std::exp(-kCellWidth * i);
      return values;
    }();
    first_ = begin / kLanes * kLanes;
    end_ = (end + kLanes - 1) / kLanes * kLanes;
    std::fill_n(sigmoids_.begin(), begin - first_, 0.0);
    std::fill_n(sigmoids_.begin() + (end - first_), end_ - end, 0.0);
    // Anew for each stretch, as far below 0 exp(-y) is infinite.
    for (int64_t i = begin; i < end;) {
      const int64_t within = (i - cell) % kStretch, count = std::min(kStretch - within, end - i);
      const double start = y + kCellWidth * static_cast<double>(i - within - cell);
      decay_from(std::exp(std::min(-start, 700.0)), &factors[within], count, &decays_[i - first_],
                 &sigmoids_[i - first_]);
      i += count;
    }
  }

  int64_t first() const { return first_; }
  int64_t size() const { return end_ - first_; }
  double decay(int64_t cell) const { return decays_[cell - first_]; }
  double& sigmoid(int64_t cell) { return sigmoids_[cell - first_]; }
  const double* sigmoids() const { return sigmoids_.data(); }

 private:
  static constexpr int64_t kStretch = 64;
  int64_t first_ = 0, end_ = 0;
  std::vector<double> decays_, sigmoids_;
};

// sigmoid_series of several cells at once.
template <int degree>
CORRDET_INLINE void sigmoid_series_lanes(const double* sigmoids,
                                         double (&coefficients)[degree + 1][kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) coefficients[0][lane] = sigmoids[lane];
  for (int k = 0; k < degree; ++k) {
    double square[kLanes] = {};
    for (int i = 0; i <= k; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        square[lane] += coefficients[i][lane] * coefficients[k - i][lane];
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      coefficients[k + 1][lane] = (coefficients[k][lane] - square[lane]) * (kCellWidth / (k + 1));
    }
  }
}

struct WindowSums {
  double rank, error, loss;
};

// Sums over the cells of a window, of the sigmoid over all samples and the false positives, and,
// where there are `integrals`, of the softplus over the latter.
template <int degree>
CORRDET_SIMD WindowSums sum_window(const double* __restrict__ sigmoids,
                                   const double* __restrict__ integrals, int64_t count,
                                   const double* __restrict__ all,
                                   const double* __restrict__ errors, int64_t stride) {
  double rank[kLanes] = {}, error[kLanes] = {}, loss[kLanes] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    double coefficients[degree + 1][kLanes];
    sigmoid_series_lanes<degree>(sigmoids + i, coefficients);
    for (int k = 0; k <= degree; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) {
        rank[lane] += coefficients[k][lane] * all[k * stride + i + lane];
        error[lane] += coefficients[k][lane] * errors[k * stride + i + lane];
      }
    }
    if (integrals == nullptr) continue;
    for (int lane = 0; lane < kLanes; ++lane) loss[lane] += integrals[i + lane] * errors[i + lane];
    for (int k = 0; k < degree; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) {
        loss[lane] +=
            coefficients[k][lane] * (kCellWidth / (k + 1)) * errors[(k + 1) * stride + i + lane];
      }
    }
  }
  WindowSums sums{};
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.rank += rank[lane];
    sums.error += error[lane];
    sums.loss += loss[lane];
  }
  return sums;
}

// Adds the series of a window, times `share`, to the polynomials of its cells.
template <int degree>
CORRDET_SIMD void add_window(const double* __restrict__ sigmoids, int64_t count, double share,
                             double* __restrict__ cells, int64_t stride) {
  for (int64_t i = 0; i < count; i += kLanes) {
    double coefficients[degree + 1][kLanes];
    sigmoid_series_lanes<degree>(sigmoids + i, coefficients);
    for (int k = 0; k <= degree; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) {
        cells[k * stride + i + lane] += share * coefficients[k][lane];
      }
    }
  }
}

// Where the positives, their edges and the ends of their windows are.
struct Places {
  Places(const Positives& positives, const Cells& cells, double reach) {
    for (int64_t u = 0; u < positives.size(); ++u) {
      own.push_back(cells.locate(positives.scores[u]));
      edge_cells.push_back(cells.locate(positives.edges[u]).cell);
      ends.push_back(cells.cell_after(positives.scores[u] + reach));
      // The positives above an edge; those are not fewer that are above a lower one.
      int64_t v = u > 0 ? first_above.back() : 0;
      while (v < positives.size() && !(positives.scores[v] > positives.edges[u])) ++v;
      first_above.push_back(v);
    }
  }

  std::vector<Cells::Place> own;
  std::vector<int64_t> edge_cells, ends;  // ends: the first cells where the sigmoid is 1
  std::vector<int64_t> first_above;       // the first positive above the edge
};

template <typename T>
void cell_sums(const Positives& positives, const Cells& cells, const Places& places,
               const Table<T>& negatives, const SmoothLoss& options,
               const std::vector<int64_t>& by_iou, int64_t room, Sums& sums) {
  constexpr int degree = Degrees<T>::cell;
  const int64_t count = positives.size();
  // All samples, for the rank: in cells, above edges in their cell, and the number above a cell.
  CellPowers<degree> everything = negatives.totals;
  std::vector<Powers<degree>> above = negatives.above;
  std::vector<double> counts(cells.cell_count() + 1, 0.0);
  Powers<degree> positives_above{};
  for (int64_t u = count - 1, v = count - 1; u >= 0; --u) {
    for (; v >= places.first_above[u]; --v) {
      const auto& [cell, offset] = places.own[v];
      if (v + 1 == count || cell != places.own[v + 1].cell) positives_above = {};
      add_sample<degree>(offset, positives_above);
      ++counts[cell];
      Powers<degree> powers{};
      add_sample<degree>(offset, powers);
      everything.add(cell, powers);
    }
    if (v + 1 < count && places.own[v + 1].cell == places.edge_cells[u]) {
      add<degree>(positives_above, above[u]);
    }
  }
  for (int64_t c = cells.cell_count() - 1; c >= 0; --c) counts[c] += counts[c + 1];
  for (int64_t c = 0; c < cells.cell_count(); ++c) counts[c] += negatives.counts[c];

  // In order of IoU, each task adding to the negatives the positives of lower IoU. Additions are in
  // that order too, whatever the number of tasks.
  const int64_t tasks =
      std::min<int64_t>({at::get_num_threads(), room, std::max<int64_t>(count / 64, 1)});
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      CellPowers<degree> totals = negatives.totals;
      PrefixSums<2> added(positives.paired() ? cells.cell_count() : 0);
      Window window(cells.cell_count());
      std::vector<double> integrals(cells.cell_count() + 2 * kLanes);
      int64_t added_count = 0;
      for (int64_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
        const int64_t u = by_iou[i];
        while (positives.paired() && positives.ious[by_iou[added_count]] < positives.ious[u]) {
          const int64_t v = by_iou[added_count++];
          Powers<degree> powers{};
          add_sample<degree>(places.own[v].offset, powers);
          totals.add(places.own[v].cell, powers);
          added.insert(places.own[v].cell, {1.0, positives.scores[v] - negatives.origin});
        }
        const double score = positives.scores[u];
        const int64_t first = places.edge_cells[u], end = places.ends[u];
        const double y = options.lam * (cells.center(first) - score);
        window.fill(first, y, first, end);
        const auto integral = [&](int64_t cell) {
          const double at = y + kCellWidth * static_cast<double>(cell - first);
          const double decay = window.decay(cell);
          return at > 0.0 ? at + std::log1p(decay) : std::log1p(1.0 / decay);
        };
        for (int64_t i = 0; options.cross_entropy && i < window.size(); ++i) {
          const int64_t c = window.first() + i;
          integrals[i] = c > first && c < end && totals.count(c) > 0.0 ? integral(c) : 0.0;
        }
        // The cell of the edge counts in part: what is above the edge.
        Powers<degree> coefficients;
        sigmoid_series<degree>(std::exchange(window.sigmoid(first), 0.0), coefficients.data());
        Powers<degree> errors = negatives.above[u];
        for (int64_t v = places.first_above[u];
             positives.paired() && v < count && places.own[v].cell == first; ++v) {
          if (positives.ious[v] < positives.ious[u])
            add_sample<degree>(places.own[v].offset, errors);
        }
        WindowSums inside = sum_window<degree>(
            window.sigmoids(), options.cross_entropy ? integrals.data() : nullptr, window.size(),
            everything.at(window.first()), totals.at(window.first()), totals.stride());
        inside.rank += dot<degree>(coefficients, above[u]);
        inside.error += dot<degree>(coefficients, errors);
        if (options.cross_entropy && errors[0] > 0.0) {
          Powers<degree> primitive;
          softplus_series<degree>(integral(first), coefficients.data(), primitive.data());
          inside.loss += dot<degree>(primitive, errors);
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
        sums.negatives[u] = negatives.counts[first + 1] + negatives.above[u][0];
        sums.rank[u] = inside.rank + counts[end];
        sums.error[u] = inside.error + beyond;
        sums.loss[u] = inside.loss / options.lam + distance;
      }
    }
  });
}

// For each bin the polynomial of the sum over positives of shares[u] * sigmoid(lam (x - s_u)); and
// for each positive v that sum over the positives of higher IoU.
template <typename T>
std::vector<Powers<Degrees<T>::part, T>> cell_gradients(const Positives& positives,
                                                        const Cells& cells, const Places& places,
                                                        double lam,
                                                        const std::vector<int64_t>& by_iou,
                                                        const std::vector<double>& shares,
                                                        std::vector<double>& on_positives) {
  constexpr int degree = Degrees<T>::cell, part_degree = Degrees<T>::part;
  const int64_t count = positives.size();
  std::vector<double> saturated(cells.cell_count() + 1, 0.0);
  for (int64_t u = 0; u < count; ++u) saturated[places.ends[u]] += shares[u];
  for (int64_t c = 0; c < cells.cell_count(); ++c) saturated[c + 1] += saturated[c];
  CellPowers<degree> totals(cells.cell_count());
  std::vector<Powers<degree>> above(count);  // what an edge adds to the rest of its cell
  std::vector<Powers<part_degree, T>> bins(cells.bin_count());
  // Each task has its own cells, and goes through all positives from the highest IoU down.
  const int64_t groups = (cells.cell_count() + kLanes - 1) / kLanes;
  const int64_t tasks =
      std::min<int64_t>(2 * at::get_num_threads(), std::max<int64_t>(count / 64, 1));
  at::parallel_for(0, tasks, 1, [&](int64_t first_task, int64_t last_task) {
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t first_cell = kLanes * (groups * task / tasks);
      const int64_t end_cell = std::min(kLanes * (groups * (task + 1) / tasks), cells.cell_count());
      PrefixSums<1> added(positives.paired() ? cells.cell_count() + 1 : 0);
      Window window(cells.cell_count());
      int64_t added_count = count;
      const auto add_positive = [&](int64_t u) {
        if (positives.paired()) added.insert(places.ends[u], {shares[u]});
        const int64_t edge_cell = places.edge_cells[u];
        const int64_t begin = std::max(edge_cell, first_cell);
        const int64_t end = std::min(places.ends[u], end_cell);
        if (begin >= end) return;
        const double y = lam * (cells.center(edge_cell) - positives.scores[u]);
        window.fill(edge_cell, y, begin, end);
        if (begin == edge_cell) {
          sigmoid_series<degree>(std::exchange(window.sigmoid(begin), 0.0), above[u].data());
          for (double& coefficient : above[u]) coefficient *= shares[u];
        }
        add_window<degree>(window.sigmoids(), window.size(), shares[u], totals.at(window.first()),
                           totals.stride());
      };
      for (int64_t i = count - 1; positives.paired() && i >= 0; --i) {
        const int64_t v = by_iou[i];
        while (positives.ious[by_iou[added_count - 1]] > positives.ious[v]) {
          add_positive(by_iou[--added_count]);
        }
        const auto& [cell, offset] = places.own[v];
        if (cell < first_cell || cell >= end_cell) continue;
        double sum = added.before(cell + 1)[0] + evaluate<degree>(totals[cell], offset);
        const int64_t end_edge = cells.first_edge(kParts * (cell + 1));
        for (int64_t u = cells.first_edge(kParts * cell); u < end_edge; ++u) {
          if (!(positives.edges[u] < positives.scores[v])) break;
          if (positives.ious[u] > positives.ious[v]) sum += evaluate<degree>(above[u], offset);
        }
        on_positives[v] = sum;
      }
      while (added_count > 0) add_positive(by_iou[--added_count]);
      for (int64_t c = first_cell; c < end_cell; ++c) {
        Powers<degree> polynomial = totals[c];
        polynomial[0] += saturated[c];
        for (int p = 0; p < kParts; ++p) {
          const auto& part = PartOfCell<degree, part_degree>::at(p);
          const int64_t first = kParts * c + p;
          int64_t u = cells.first_edge(first);
          part.restrict_polynomial(polynomial, bins[first + u]);
          for (; u < cells.first_edge(first + 1); ++u) {
            add<degree>(above[u], polynomial);
            part.restrict_polynomial(polynomial, bins[first + u + 1]);
          }
        }
      }
    }
  });
  return bins;
}

template <int degree, typename T>
CORRDET_SIMD void evaluate_samples(const double* __restrict__ offsets,
                                   const int32_t* __restrict__ bins, int64_t count,
                                   const Powers<degree, T>* __restrict__ polynomials,
                                   T* __restrict__ gradient) {
  for (int64_t i = 0; i < count; ++i) {
    // Open cells, and bin 0, have a constant alone, which an infinite offset would spoil.
    const T offset = static_cast<T>(offsets[i] < 1.0 ? offsets[i] : 1.0);
    gradient[i] = evaluate<degree, T>(polynomials[bins[i]], offset);
  }
}

template <typename T, int degree>
void negatives_gradient(const T* logits, const Cells& cells, const std::vector<int32_t>& bin_of,
                        const std::vector<Powers<degree, T>>& polynomials, T* gradient) {
  const int64_t count = static_cast<int64_t>(bin_of.size());
  at::parallel_for(0, count, kSampleGrain, [&](int64_t first, int64_t last) {
    std::array<int32_t, kBlock> places;
    std::array<double, kBlock> offsets;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t size = std::min(kBlock, last - begin);
      cells.locate(logits + begin, size, places.data(), offsets.data());
      evaluate_samples<degree, T>(offsets.data(), &bin_of[begin], size, polynomials.data(),
                                  gradient + begin);
    }
  });
}

// The cells that samples may be summed in, so that all tables together take about 40 bytes per
// sample where they are not small anyway. With few pairs, taking them one by one is cheaper.
template <typename T>
int64_t most_cells(int64_t samples, int64_t positives) {
  constexpr int64_t bytes = kParts * sizeof(Powers<Degrees<T>::part>) + kFine * sizeof(int32_t) +
                            4 * sizeof(Powers<Degrees<T>::cell>);
  return std::min(samples * positives / 4, std::max<int64_t>(samples * 40 / bytes, 2048));
}

template <typename T>
void smooth_error_kernel(const T* logits, const Samples& samples, const std::vector<double>& ious,
                         const SmoothLoss& loss, T* value, T* gradient) {
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

  const int64_t most = most_cells<T>(samples_count, count);
  const Cells cells(positives, loss.lam, Series<T>::saturated, most);
  std::optional<Places> places;
  std::vector<int32_t> bin_of;
  Sums sums(count);
  if (cells.usable()) {
    places.emplace(positives, cells, Series<T>::saturated / loss.lam);
    bin_of.resize(samples_count);
    auto bins = sum_bins<T, Degrees<T>::part>(logits, samples, cells, bin_of);
    if (bins.empty()) return undefined();
    const Table<T> negatives(cells, bins, count);
    bins = {};
    const int64_t room = std::max<int64_t>(most / cells.cell_count(), 1);
    cell_sums<T>(positives, cells, *places, negatives, loss, by_iou, room, sums);
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
        cell_gradients<T>(positives, cells, *places, loss.lam, by_iou, shares, on_positives);
    negatives_gradient<T, Degrees<T>::part>(logits, cells, bin_of, bins, gradient);
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
