// The Device of common/launch.h on a GPU. For .cu files.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/launch.h"

namespace corrdet {

// Launches go to the current stream of the GPU that `like` is on, and to that GPU, as long as the
// CudaDevice lives.
class CudaDevice {
 public:
  explicit CudaDevice(const at::Tensor& like)
      : guard_(like.device()),
        options_(like.options().dtype(at::kLong)),
        stream_(c10::cuda::getCurrentCUDAStream()) {}

  template <typename T>
  T* empty(const char*, int64_t count) {
    return keep<T>(at::empty({words<T>(count)}, options_));
  }

  template <typename T>
  T* zeros(const char*, int64_t count) {
    return keep<T>(at::zeros({words<T>(count)}, options_));
  }

  template <typename U, typename T>
  U* reuse(const char*, T* used, int64_t) {
    return reinterpret_cast<U*>(used);
  }

  int64_t available_blocks(int64_t blocks) const { return std::min<int64_t>(blocks, 2147483647); }

  template <typename... Parameters, typename... Arguments>
  void launch(const Grid& grid, void (*kernel)(Parameters...), const Arguments&... arguments) {
    kernel<<<static_cast<unsigned int>(available_blocks(grid.blocks)),
             static_cast<unsigned int>(grid.threads), static_cast<size_t>(grid.shared_bytes),
             stream_>>>(static_cast<Parameters>(arguments)...);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  template <typename T>
  static int64_t words(int64_t count) {
    return ceil_divide(count * static_cast<int64_t>(sizeof(T)), sizeof(int64_t));
  }

  template <typename T>
  T* keep(at::Tensor memory) {
    kept_.push_back(std::move(memory));
    return reinterpret_cast<T*>(kept_.back().data_ptr<int64_t>());
  }

  c10::cuda::CUDAGuard guard_;
  at::TensorOptions options_;
  c10::cuda::CUDAStream stream_;
  std::vector<at::Tensor> kept_;
};

}  // namespace corrdet
