// Checks that operators share. The Python functions check first and say more; these guard direct
// calls of torch.ops.corrdet.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <string>
#include <string_view>

#include "common/names.h"

namespace corrdet {

inline void check_positive(const char* what, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, what, " must be positive and finite, got ",
                    value);
}

template <typename Enum>
Enum parse_name(const char* what, std::string_view name) {
  const std::optional<Enum> found = find_name<Enum>(name);
  if (!found) {
    std::string choices;
    for (const std::string_view choice : Names<Enum>::all) {
      choices += (choices.empty() ? "'" : ", '") + std::string(choice) + "'";
    }
    TORCH_CHECK_VALUE(false, what, " must be one of ", choices, ", got '", name, "'");
  }
  return *found;
}

}  // namespace corrdet
