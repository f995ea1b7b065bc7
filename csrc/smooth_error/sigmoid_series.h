// Taylor coefficients of the sigmoid and of the softplus, for sums over cells.
#pragma once

#include "common/device.h"

namespace corrdet {

// Cells of this width in y = lambda (s_v - s_u). The series converge within pi of their centre, so
// that half a cell leaves (1 / 4 / pi)^(degree + 1) of the sum: 3e-7 and 6e-14.
constexpr double kCellWidth = 0.5;

template <typename T>
struct Series;

// From `saturated` on, the sigmoid is 1 and the softplus y as exactly as the type can tell.
template <>
struct Series<float> {
  static constexpr int degree = 5;
  static constexpr double saturated = 17.0;
};

template <>
struct Series<double> {
  static constexpr int degree = 11;
  static constexpr double saturated = 37.0;
};

// sigma(y + kCellWidth * z) = sum of coefficients[k] z^k, by sigma' = sigma - sigma^2.
template <int degree>
CORRDET_INLINE void sigmoid_series(double value, double coefficients[]) {
  coefficients[0] = value;
  for (int k = 0; k < degree; ++k) {
    double square = 0.0;
    for (int i = 0; i <= k; ++i) square += coefficients[i] * coefficients[k - i];
    coefficients[k + 1] = (coefficients[k] - square) * (kCellWidth / (k + 1));
  }
}

// The same of the softplus, whose derivative is the sigmoid.
template <int degree>
CORRDET_INLINE void softplus_series(double value, const double sigmoid[], double coefficients[]) {
  coefficients[0] = value;
  for (int k = 0; k < degree; ++k) coefficients[k + 1] = sigmoid[k] * (kCellWidth / (k + 1));
}

}  // namespace corrdet
