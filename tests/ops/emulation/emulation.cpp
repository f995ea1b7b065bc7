// What ctypes calls: the functions that were included before (tests/helpers/emulation.py lists
// csrc's *_launch.cuh), and kernels with a fault each, which the emulation must find. Functions
// return an empty string, or the fault.

#include "emulated_device.h"

namespace {

const char* report(const std::function<void()>& run) {
  static std::string message;
  message.clear();
  try {
    run();
  } catch (const std::exception& caught) {
    message = caught.what();
  }
  return message.c_str();
}

// Kernels with a fault. Each reverses the block's values through shared memory.
enum class Fault {
  kNone,
  kMissingBarrier,
  kOutOfBounds,
  kUninitialized,
  kDivergence,
  kBlocks,
  kAtomic
};

void faulty_kernel(Fault fault, corrdet::Pointer<const float> values,
                   corrdet::Pointer<float> result) {
  CORRDET_SHARED(float, shared);
  const int64_t thread = threadIdx.x;
  const int64_t mirrored = blockDim.x - 1 - thread;
  if (fault != Fault::kUninitialized || thread != 3) shared[thread] = values[thread];
  if (fault == Fault::kDivergence && thread == 3) return;
  if (fault != Fault::kMissingBarrier) __syncthreads();
  const int64_t block_start = fault == Fault::kBlocks ? 0 : blockIdx.x * blockDim.x;
  if (fault == Fault::kAtomic) {
    CORRDET_ATOMIC_ADD(shared, 0, 1.0f);
    if (thread == 3) __syncthreads();
  }
  result[block_start + thread + (fault == Fault::kOutOfBounds)] = shared[mirrored];
}

}  // namespace

extern "C" {

const char* run(const char* name, const emulation::Options* options,
                const emulation::Argument* arguments, int64_t count) {
  return report([&] {
    const auto found = emulation::functions().find(name);
    if (found == emulation::functions().end()) {
      throw emulation::Error(std::string("no function ") + name);
    }
    emulation::Device device(*options);
    found->second(device, arguments, static_cast<size_t>(count));
  });
}

const char* faulty(int64_t fault, int64_t order, float* values, float* result) {
  return report([&] {
    const int64_t threads = 8, blocks = 2;
    emulation::Device device({order, blocks, 0, -1, 0});
    const auto source = device.wrap("values", values, threads, true);
    const auto target = device.wrap("result", result, threads * blocks, false);
    device.launch({blocks, threads, threads * static_cast<int64_t>(sizeof(float))}, faulty_kernel,
                  static_cast<Fault>(fault), source, target);
  });
}

}  // extern "C"
