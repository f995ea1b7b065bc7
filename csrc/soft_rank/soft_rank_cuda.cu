#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "common/cuda_device.h"
#include "soft_rank/soft_rank.h"
#include "soft_rank/soft_rank_launch.cuh"

namespace corrdet {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> soft_rank(const at::Tensor& values,
                                                         double strength) {
  check_soft_rank(values, strength);
  CudaDevice device(values);
  const bool narrow = values.scalar_type() == at::kHalf || values.scalar_type() == at::kBFloat16;
  const at::Tensor input = narrow ? values.to(at::kFloat) : values;
  at::Tensor ranks = at::empty(input.sizes(), input.options());
  at::Tensor pools = at::empty(input.sizes(), input.options().dtype(at::kLong));
  if (input.numel() == 0) {
    at::Tensor permutation = at::empty_like(pools);
    return {narrow ? ranks.to(values.scalar_type()) : ranks, permutation, pools};
  }
  // Not structured bindings: the lambda below cannot capture them before C++20.
  const auto order = at::sort(input, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const at::Tensor sorted = std::get<0>(order).contiguous();
  const at::Tensor permutation = std::get<1>(order).contiguous();
  const int64_t n = input.size(-1);
  const int64_t rows = input.numel() / n;
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "soft_rank", [&] {
    launch_soft_rank<scalar_t>(device, sorted.const_data_ptr<scalar_t>(),
                               permutation.const_data_ptr<int64_t>(), rows, n, strength, 0,
                               ranks.data_ptr<scalar_t>(), pools.data_ptr<int64_t>());
  });
  return {narrow ? ranks.to(values.scalar_type()) : ranks, permutation, pools};
}

at::Tensor soft_rank_backward(const at::Tensor& grad, const at::Tensor& permutation,
                              const at::Tensor& pools, double strength) {
  check_soft_rank_backward(grad, permutation, pools, strength);
  CudaDevice device(grad);
  at::Tensor output = at::empty(grad.sizes(), grad.options());
  if (grad.numel() == 0) return output;
  const at::Tensor upstream = grad.contiguous();
  const at::Tensor positions = permutation.contiguous();
  const at::Tensor starts = pools.contiguous();
  const int64_t n = grad.size(-1);
  const int64_t rows = grad.numel() / n;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "soft_rank_backward", [&] {
        launch_soft_rank_backward<scalar_t>(
            device, upstream.const_data_ptr<scalar_t>(), positions.const_data_ptr<int64_t>(),
            starts.const_data_ptr<int64_t>(), rows, n, strength, 0, output.data_ptr<scalar_t>());
      });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(corrdet, CUDA, m) {
  m.impl("soft_rank", &soft_rank);
  m.impl("soft_rank_backward", &soft_rank_backward);
}

}  // namespace corrdet
