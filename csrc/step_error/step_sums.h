// The two passes over the samples of the losses on the step H: sums over the negatives for each
// positive, and what the negatives get back. See pairwise_error.h for the idea.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pairwise_error/samples_cpu.h"
#include "pairwise_error/sorted_edges.h"

namespace corrdet {

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

// Of the positives, weighted where there are `weights`.
inline std::vector<Stretch> positive_stretches(const Knots& knots,
                                               const std::vector<double>& scores,
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

// The negatives' stretches; false if a logit that counts is beyond `largest`, or undefined.
template <typename T>
bool negative_stretches(const T* logits, const Samples& samples, const Knots& knots, double largest,
                        std::vector<Stretch>& stretches) {
  const int64_t count = samples.size();
  const int64_t length = knots.edges.size() + 1;
  const int64_t chunks = count_chunks(count, length * static_cast<int64_t>(sizeof(Stretch)));
  std::vector<std::vector<Stretch>> partial(chunks);
  std::vector<char> near(chunks, 1);
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      std::vector<Stretch>& table = partial[chunk];
      table.resize(length);
      const double low = knots.edges.low();
      bool all_near = true;
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) {
        if (samples.labels[i] != kNegative) continue;
        const double x = static_cast<double>(logits[i]);
        all_near &= std::abs(x) <= largest;
        if (!(x > low) || !all_near) continue;
        const int64_t j = knots.edges.count_below(x);
        table[j].count += 1.0;
        table[j].sum += x - knots.edges[j - 1];
      }
      near[chunk] = all_near;
    }
  });
  stretches.assign(length, Stretch());
  for (const std::vector<Stretch>& table : partial) {
    for (int64_t j = 0; j < length; ++j) {
      stretches[j].count += table[j].count;
      stretches[j].sum += table[j].sum;
    }
  }
  return std::all_of(near.begin(), near.end(), [](char value) { return value != 0; });
}

// What the negatives of one stretch get back: `value` at the knot below them, rising by `slope`.
struct Line {
  double start = 0.0, value = 0.0, slope = 0.0;
};

// The sum of shares[u] * H(x - s_u) as a function of x, a line per stretch.
inline std::vector<Line> gradient_lines(const Knots& knots, const std::vector<double>& scores,
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

template <typename X, typename T>
void negatives_gradient(const X* logits, const Samples& samples, const Knots& knots,
                        const std::vector<Line>& lines, T* gradient) {
  const double low = knots.edges.low();
  at::parallel_for(0, samples.size(), kSampleGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double x = static_cast<double>(logits[i]);
      if (samples.labels[i] != kNegative || !(x > low)) {
        gradient[i] = T(0);
        continue;
      }
      const Line& line = lines[knots.edges.count_below(x)];
      gradient[i] = static_cast<T>(line.value + line.slope * (x - line.start));
    }
  });
}

}  // namespace corrdet
