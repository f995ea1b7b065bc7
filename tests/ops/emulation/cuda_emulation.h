// Runs CUDA kernels on the host, one thread of a block at a time, and checks what a GPU does not:
//
// - every access lies inside its buffer,
// - nothing is read that was never written,
// - no two threads touch a value, one of them writing, without a barrier between them (two blocks:
// never),
// - every thread of a block comes to the same barriers.
//
// Each thread is a fiber that runs until its next __syncthreads(), so a block is deterministic for
// a given order of its threads; the order is a parameter. Include this before any kernel header.
// Atomic additions may meet each other, in any block, but nothing else. Not emulated: warp
// intrinsics, streams, and the rounding of a GPU's own math functions.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned int x = 0;
};

enum class Order { kForward, kReverse, kRandom };

// What the running fiber sees.
struct State {
  int64_t phase = 0;  // barriers passed since the launch began, all blocks counted
  int64_t barriers_met = 0;
  int64_t skip_barrier = -1;  // a barrier, by its place in a thread's course, that does nothing
  std::function<void()> yield;
  size_t shared_bytes = 0;
  std::shared_ptr<void> shared;
};

inline State state;

}  // namespace emulation

inline emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// Who touched a value last. Several readers in one phase, or several blocks, are kSeveral.
constexpr int64_t kNobody = -1, kSeveral = -2;

struct Access {
  int64_t block = kNobody, thread = kNobody, phase = kNobody;

  bool conflicts() const {
    if (block == kNobody) return false;
    if (block != blockIdx.x) return true;
    return phase == state.phase && thread != threadIdx.x;
  }

  void record_write() { *this = {blockIdx.x, threadIdx.x, state.phase}; }

  void record_read() {
    const bool same_phase = phase == state.phase && block == blockIdx.x;
    thread = same_phase && thread != threadIdx.x ? kSeveral : threadIdx.x;
    block = block == kNobody || block == blockIdx.x ? blockIdx.x : kSeveral;
    phase = state.phase;
  }
};

template <typename T>
struct Buffer {
  Buffer(std::string buffer_name, T* values, int64_t count, bool readable)
      : name(std::move(buffer_name)),
        data(values),
        size(count),
        initialized(count, readable),
        writes(count),
        reads(count),
        atomics(count) {}

  std::string name;
  T* data;
  int64_t size;
  std::vector<char> initialized;
  std::vector<Access> writes, reads, atomics;

  [[noreturn]] void fail(const char* what, int64_t index) const {
    throw Error(std::string(what) + ": " + name + "[" + std::to_string(index) + "] of " +
                std::to_string(size) + ", block " + std::to_string(blockIdx.x) + ", thread " +
                std::to_string(threadIdx.x));
  }

  void check_bounds(int64_t index) const {
    if (index < 0 || index >= size) fail("out of bounds", index);
  }

  T read(int64_t index) {
    check_bounds(index);
    if (!initialized[index]) fail("read before any write", index);
    if (writes[index].conflicts()) fail("race between a write and a read", index);
    if (atomics[index].conflicts()) fail("race between an atomic addition and a read", index);
    reads[index].record_read();
    return data[index];
  }

  void atomic_add(int64_t index, const T& value) {
    check_bounds(index);
    if (!initialized[index]) fail("read before any write", index);
    if (writes[index].conflicts() || reads[index].conflicts()) {
      fail("race between an atomic addition and another access", index);
    }
    atomics[index].record_read();
    data[index] += value;
  }

  // Another launch comes after all of this one.
  void settle() {
    for (auto* accesses : {&writes, &reads, &atomics}) {
      std::fill(accesses->begin(), accesses->end(), Access());
    }
  }

  void write(int64_t index, const T& value) {
    check_bounds(index);
    if (writes[index].conflicts()) fail("race between two writes", index);
    if (reads[index].conflicts()) fail("race between a read and a write", index);
    if (atomics[index].conflicts()) fail("race between an atomic addition and a write", index);
    writes[index].record_write();
    initialized[index] = true;
    data[index] = value;
  }
};

template <typename T>
class Reference {
 public:
  Reference(Buffer<T>* buffer, int64_t index) : buffer_(buffer), index_(index) {}
  Reference(const Reference&) = default;
  operator T() const { return buffer_->read(index_); }
  const Reference& operator=(const T& value) const {
    buffer_->write(index_, value);
    return *this;
  }
  const Reference& operator=(const Reference& other) const { return *this = static_cast<T>(other); }

 private:
  Buffer<T>* buffer_;
  int64_t index_;
};

// Stands for T*. A pointer to const reads values, another one yields references.
template <typename T>
class CheckedPointer {
 public:
  using Value = std::remove_const_t<T>;
  CheckedPointer(Buffer<Value>* buffer, int64_t offset = 0) : buffer_(buffer), offset_(offset) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  CheckedPointer(const CheckedPointer<U>& other) : buffer_(other.buffer_), offset_(other.offset_) {}

  auto operator[](int64_t index) const {
    if constexpr (std::is_const_v<T>) {
      return buffer_->read(offset_ + index);
    } else {
      return Reference<T>(buffer_, offset_ + index);
    }
  }
  CheckedPointer operator+(int64_t step) const { return {buffer_, offset_ + step}; }
  void atomic_add(int64_t index, const Value& value) const {
    buffer_->atomic_add(offset_ + index, value);
  }

 private:
  template <typename U>
  friend class CheckedPointer;

  Buffer<Value>* buffer_;
  int64_t offset_;
};

// The block's dynamic shared memory: new, and unreadable until written, for each block.
template <typename T>
CheckedPointer<T> shared_memory() {
  struct Memory {
    explicit Memory(size_t count)
        : values(count),
          buffer("shared memory", values.data(), static_cast<int64_t>(count), false) {}
    std::vector<T> values;
    Buffer<T> buffer;
  };
  if (!state.shared) state.shared = std::make_shared<Memory>(state.shared_bytes / sizeof(T));
  return {&static_cast<Memory*>(state.shared.get())->buffer};
}

struct Fiber {
  static constexpr size_t kStackBytes = 128 * 1024;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  bool done = false;
  int64_t barriers_met = 0;
};

struct Launch {
  unsigned int grid = 1;
  unsigned int block = 1;
  size_t shared_bytes = 0;
  Order order = Order::kForward;
  int64_t skip_barrier = -1;
};

namespace internal {
inline ucontext_t scheduler;
inline const std::function<void()>* kernel;
inline Fiber* running;
inline std::string error;

inline void enter() {
  try {
    (*kernel)();
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

inline std::vector<unsigned int> arrange(unsigned int count, Order order, std::mt19937& random) {
  std::vector<unsigned int> indices(count);
  std::iota(indices.begin(), indices.end(), 0u);
  if (order == Order::kReverse) std::reverse(indices.begin(), indices.end());
  if (order == Order::kRandom) std::shuffle(indices.begin(), indices.end(), random);
  return indices;
}
}  // namespace internal

// Runs `kernel` once for every thread of every block. Throws Error for the first fault found.
inline void launch(const Launch& config, const std::function<void()>& kernel) {
  std::mt19937 random(0);
  state = State();
  state.skip_barrier = config.skip_barrier;
  state.shared_bytes = config.shared_bytes;
  state.yield = [] { swapcontext(&internal::running->context, &internal::scheduler); };
  internal::kernel = &kernel;
  internal::error.clear();
  gridDim.x = config.grid;
  blockDim.x = config.block;
  std::vector<Fiber> fibers(config.block);

  for (unsigned int block : internal::arrange(config.grid, config.order, random)) {
    blockIdx.x = block;
    state.shared.reset();
    for (Fiber& fiber : fibers) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, internal::enter, 0);
      fiber.done = false;
      fiber.barriers_met = 0;
    }
    size_t finished = 0;
    while (finished < fibers.size()) {
      finished = 0;
      for (unsigned int thread : internal::arrange(config.block, config.order, random)) {
        Fiber& fiber = fibers[thread];
        if (!fiber.done) {
          threadIdx.x = thread;
          state.barriers_met = fiber.barriers_met;
          internal::running = &fiber;
          swapcontext(&internal::scheduler, &fiber.context);
          fiber.barriers_met = state.barriers_met;
          if (!internal::error.empty()) throw Error(internal::error);
        }
        finished += fiber.done;
      }
      ++state.phase;
      if (finished != 0 && finished != fibers.size()) {
        throw Error("divergent barrier: block " + std::to_string(block) + ", " +
                    std::to_string(finished) + " of " + std::to_string(fibers.size()) +
                    " threads returned while the others wait");
      }
    }
  }
}

}  // namespace emulation

inline void __syncthreads() {
  if (emulation::state.barriers_met++ == emulation::state.skip_barrier) return;
  emulation::state.yield();
}

namespace corrdet {
template <typename T>
using Pointer = emulation::CheckedPointer<T>;
}  // namespace corrdet

#define CORRDET_ATOMIC_ADD(pointer, index, value) (pointer).atomic_add(index, value)

#define CORRDET_SHARED(T, name) const auto name = ::emulation::shared_memory<T>()
