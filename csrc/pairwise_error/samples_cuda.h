// For .cu files: what step_error and smooth_error share of their way to the launches.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "common/cuda_device.h"
#include "pairwise_error/pairwise_error.h"

namespace corrdet {

inline void check_count(const at::Tensor& logits) {
  TORCH_CHECK_VALUE(logits.numel() < (int64_t(1) << 31),
                    "on CUDA there may be up to 2^31 - 1 samples, got ", logits.numel());
}

// Calls function(logits, targets) with pointers to the values of both.
template <typename Function>
void with_samples(const at::Tensor& logits, const at::Tensor& all_targets, Function function) {
  const at::Tensor targets = readable_targets(all_targets);
  AT_DISPATCH_FLOATING_TYPES(logits.scalar_type(), "logits", [&] {
    const scalar_t* const values = logits.const_data_ptr<scalar_t>();
    AT_DISPATCH_ALL_TYPES_AND(at::kBool, targets.scalar_type(), "targets",
                              [&] { function(values, targets.const_data_ptr<scalar_t>()); });
  });
}

}  // namespace corrdet
