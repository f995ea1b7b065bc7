// The series of the sigmoid at the cells of a positive's window, in sums over the samples of the
// cells, and in the polynomials that the samples get back.
#pragma once

#include <cstdint>
#include <vector>

#include "smooth_error/polynomials.h"

namespace corrdet {

// Cells that loops take at once.
constexpr int kLanes = 4;

// Values of cells, a row for each power.
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

// exp(-y) and the sigmoid of y at the centres of the cells of a positive's window. In whole groups
// of kLanes cells, with a sigmoid of 0 in what is not asked for, as then its series is 0 too.
class Window {
 public:
  explicit Window(int64_t cells) : decays_(cells + 2 * kLanes), sigmoids_(cells + 2 * kLanes) {}

  // Of the cells [begin, end) of a window that starts at `cell`, whose centre is at y. The same
  // whatever `begin` is, to the bit.
  void fill(int64_t cell, double y, int64_t begin, int64_t end);

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

struct WindowSums {
  double rank, error, loss;
};

// Sums over the cells of a window, of the sigmoid over all samples and the false positives, and,
// where there are `integrals`, of the softplus over the latter. T is float or double, and says the
// degree.
template <typename T>
WindowSums sum_window(const Window& window, const double* integrals,
                      const CellPowers<Degrees<T>::cell>& all,
                      const CellPowers<Degrees<T>::cell>& errors);

// Adds the series of a window, times `share`, to the polynomials of its cells.
template <typename T>
void add_window(const Window& window, double share, CellPowers<Degrees<T>::cell>& cells);

}  // namespace corrdet
