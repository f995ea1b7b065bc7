// Sums over prefixes of an array that changes (Fenwick).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace corrdet {

template <int channels>
class PrefixSums {
 public:
  explicit PrefixSums(int64_t count) : sums_(count + 1) {}

  void insert(int64_t index, const std::array<double, channels>& values) {
    for (int64_t i = index + 1; i < static_cast<int64_t>(sums_.size()); i += i & -i) {
      for (int channel = 0; channel < channels; ++channel) sums_[i][channel] += values[channel];
    }
  }

  std::array<double, channels> before(int64_t index) const {
    std::array<double, channels> sum{};
    for (int64_t i = index; i > 0; i -= i & -i) {
      for (int channel = 0; channel < channels; ++channel) sum[channel] += sums_[i][channel];
    }
    return sum;
  }

 private:
  std::vector<std::array<double, channels>> sums_;
};

}  // namespace corrdet
