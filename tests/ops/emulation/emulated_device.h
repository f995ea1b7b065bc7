// The Device of csrc/common/launch.h on the host, and the functions that csrc's *_launch.cuh name
// with CORRDET_EMULATED, called by name with what ctypes passes. Include it before any of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/launch.h"
#include "common/names.h"
#include "cuda_emulation.h"

namespace emulation {

// As tests/helpers/emulation.py has it.
struct Options {
  int64_t order;         // Order
  int64_t grid;          // blocks at most
  int64_t launch;        // the one that skip_barrier is for, counted from 0
  int64_t skip_barrier;  // -1: none
  int64_t missing;       // values by which outputs are declared shorter than they are
};

// What is passed for one parameter, as tests/helpers/emulation.py has it.
struct Argument {
  int64_t integer;
  double real;
  const char* text;
  void* data;
  int64_t count;
  int64_t item_bytes;
};

class Device {
 public:
  explicit Device(const Options& options) : options_(options) {}

  template <typename T>
  CheckedPointer<T> empty(const char* name, int64_t count) {
    return allocate<T>(name, count, false);
  }

  template <typename T>
  CheckedPointer<T> zeros(const char* name, int64_t count) {
    return allocate<T>(name, count, true);
  }

  // Memory of its own: what is read of it has to be written anew. That a kernel still needs what it
  // overwrites on a GPU is not seen.
  template <typename U, typename T>
  CheckedPointer<U> reuse(const char* name, CheckedPointer<T>, int64_t count) {
    return allocate<U>(name, count, false);
  }

  int64_t available_blocks(int64_t blocks) const { return std::min(blocks, options_.grid); }

  template <typename... Parameters, typename... Arguments>
  void launch(const corrdet::Grid& grid, void (*kernel)(Parameters...),
              const Arguments&... arguments) {
    const Launch config = {static_cast<unsigned int>(available_blocks(grid.blocks)),
                           static_cast<unsigned int>(grid.threads),
                           static_cast<size_t>(grid.shared_bytes),
                           static_cast<Order>(options_.order),
                           launches_++ == options_.launch ? options_.skip_barrier : -1};
    emulation::launch(config, [&] { kernel(static_cast<Parameters>(arguments)...); });
    for (const auto& settle : settlers_) settle();  // the next launch comes after all of this one
  }

  // Memory of the caller's.
  template <typename T>
  CheckedPointer<T> wrap(const std::string& name, T* data, int64_t count, bool readable) {
    const auto buffer = std::make_shared<Buffer<T>>(name, data, count, readable);
    settlers_.push_back([buffer] { buffer->settle(); });
    return buffer.get();
  }

  int64_t missing() const { return options_.missing; }

 private:
  template <typename T>
  CheckedPointer<T> allocate(const char* name, int64_t count, bool readable) {
    const auto values = std::make_shared<std::vector<T>>(count);
    memory_.push_back(values);
    return wrap(name, values->data(), count, readable);
  }

  Options options_;
  int64_t launches_ = 0;
  std::vector<std::shared_ptr<void>> memory_;
  std::vector<std::function<void()>> settlers_;  // they hold the buffers
};

// An argument as a parameter of type T: pointers to const are inputs, others outputs.
template <typename T>
struct Converted {
  static T from(Device&, const Argument& argument, size_t position) {
    if constexpr (std::is_enum_v<T>) {
      const std::string name = argument.text == nullptr ? "" : argument.text;
      const auto found = corrdet::find_name<T>(name);
      if (!found) throw Error("argument " + std::to_string(position) + ": no name '" + name + "'");
      return *found;
    } else if constexpr (std::is_floating_point_v<T>) {
      return static_cast<T>(argument.real);
    } else {
      return static_cast<T>(argument.integer);
    }
  }
};

template <typename T>
struct Converted<CheckedPointer<T>> {
  using Value = std::remove_const_t<T>;

  static CheckedPointer<T> from(Device& device, const Argument& argument, size_t position) {
    constexpr bool is_input = std::is_const_v<T>;
    const std::string name = (is_input ? "input " : "output ") + std::to_string(position);
    if (argument.data != nullptr && argument.item_bytes != sizeof(Value)) {
      throw Error(name + ": values of " + std::to_string(argument.item_bytes) + " bytes");
    }
    const int64_t missing = is_input ? 0 : device.missing();
    return device.wrap(name, static_cast<Value*>(argument.data),
                       std::max<int64_t>(argument.count - missing, 0), is_input);
  }
};

using Function = std::function<void(Device&, const Argument*, size_t)>;

inline std::map<std::string, Function>& functions() {
  static std::map<std::string, Function> functions;
  return functions;
}

template <typename... Parameters, size_t... positions>
Function with_arguments(void (*function)(Device&, Parameters...),
                        std::index_sequence<positions...>) {
  return [function](Device& device, const Argument* arguments, size_t count) {
    if (count != sizeof...(Parameters)) {
      throw Error("takes " + std::to_string(sizeof...(Parameters)) + " arguments, not " +
                  std::to_string(count));
    }
    function(device, Converted<Parameters>::from(device, arguments[positions], positions)...);
  };
}

template <typename... Parameters>
bool add(const std::string& name, void (*function)(Device&, Parameters...)) {
  functions()[name] = with_arguments(function, std::index_sequence_for<Parameters...>());
  return true;
}

}  // namespace emulation

#define CORRDET_EMULATED(name, ...)                                                              \
  template <typename T>                                                                          \
  struct Emulated_##name {                                                                       \
    using Device = ::emulation::Device;                                                          \
    static bool add(const char* full_name) { return ::emulation::add(full_name, &__VA_ARGS__); } \
  };                                                                                             \
  static const bool emulated_##name = Emulated_##name<float>::add(#name "_float32") &&           \
                                      Emulated_##name<double>::add(#name "_float64")
