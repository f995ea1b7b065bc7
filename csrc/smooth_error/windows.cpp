#include "smooth_error/windows.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/device.h"
#include "common/simd.h"
#include "smooth_error/sigmoid_series.h"

namespace corrdet {
namespace {

// exp(-y) and the sigmoid of y at cells in a row; `factors` are exp(-kCellWidth i).
CORRDET_SIMD void decay_from(double decay, const double* __restrict__ factors, int64_t count,
                             double* __restrict__ decays, double* __restrict__ sigmoids) {
  for (int64_t i = 0; i < count; ++i) {
    decays[i] = decay * factors[i];
    sigmoids[i] = 1.0 / (1.0 + decays[i]);
  }
}

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

template <int degree>
CORRDET_SIMD WindowSums sum_cells(const double* __restrict__ sigmoids,
                                  const double* __restrict__ integrals, int64_t count,
                                  const double* __restrict__ all, const double* __restrict__ errors,
                                  int64_t stride) {
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

template <int degree>
CORRDET_SIMD void add_to_cells(const double* __restrict__ sigmoids, int64_t count, double share,
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

}  // namespace

void Window::fill(int64_t cell, double y, int64_t begin, int64_t end) {
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

template <typename T>
WindowSums sum_window(const Window& window, const double* integrals,
                      const CellPowers<Degrees<T>::cell>& all,
                      const CellPowers<Degrees<T>::cell>& errors) {
  return sum_cells<Degrees<T>::cell>(window.sigmoids(), integrals, window.size(),
                                     all.at(window.first()), errors.at(window.first()),
                                     errors.stride());
}

template <typename T>
void add_window(const Window& window, double share, CellPowers<Degrees<T>::cell>& cells) {
  add_to_cells<Degrees<T>::cell>(window.sigmoids(), window.size(), share, cells.at(window.first()),
                                 cells.stride());
}

#define CORRDET_INSTANTIATE(T)                                            \
  template WindowSums sum_window<T>(const Window&, const double*,         \
                                    const CellPowers<Degrees<T>::cell>&,  \
                                    const CellPowers<Degrees<T>::cell>&); \
  template void add_window<T>(const Window&, double, CellPowers<Degrees<T>::cell>&);
CORRDET_INSTANTIATE(float)
CORRDET_INSTANTIATE(double)

}  // namespace corrdet
