// Options that are chosen by name. A list of names is a macro over a macro, so that it stands once:
// the enumeration that kernels take, and the names that callers give, are made from it.
//
//   #define CORRDET_COLOURS(NAME) NAME(red) NAME(green)
//   CORRDET_NAMED(Colour, CORRDET_COLOURS);  // Colour::red, find_name<Colour>("red")
//
// tests/ops compare them with the tuples of names in corrdet/ops.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace corrdet {

template <typename Enum>
struct Names;

#define CORRDET_ENUMERATOR(name) name,
#define CORRDET_NAME(name) #name,
#define CORRDET_NAMED(Enum, LIST)                                   \
  enum class Enum : int { LIST(CORRDET_ENUMERATOR) };               \
  template <>                                                       \
  struct Names<Enum> {                                              \
    static constexpr std::string_view all[] = {LIST(CORRDET_NAME)}; \
  }

template <typename Enum>
std::optional<Enum> find_name(std::string_view name) {
  int index = 0;
  for (const std::string_view candidate : Names<Enum>::all) {
    if (candidate == name) return static_cast<Enum>(index);
    ++index;
  }
  return std::nullopt;
}

}  // namespace corrdet
