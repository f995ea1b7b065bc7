// Polynomials in the offsets of samples from the centre of their cell, or of their part of a cell.
#pragma once

#include <algorithm>
#include <array>

#include "common/device.h"
#include "smooth_error/sigmoid_series.h"

namespace corrdet {

// The degrees and parts that sums over samples take. Samples are summed in parts of cells, which do
// with fewer powers than whole cells: half a part leaves (1 / 32)^(part_degree + 1) /
// (part_degree + 1)!, 4e-8 and 6e-15.
constexpr int kParts = 8;  // of a cell

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

}  // namespace corrdet
