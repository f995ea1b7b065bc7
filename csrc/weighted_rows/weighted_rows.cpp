// The backward pass of the pairwise errors: their gradients are computed with the loss, in rows,
// one for each part of it, and then weighted. Composed of ATen's operators, so on every device.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

namespace corrdet {
namespace {

at::Tensor weighted_rows(const at::Tensor& grads, const at::Tensor& gradients, at::ScalarType dtype,
                         const std::optional<at::Tensor>&) {
  TORCH_CHECK_VALUE(gradients.dim() == 2 && grads.dim() == 1 && grads.size(0) >= gradients.size(0),
                    "grads must be a vector with a value for each row of gradients, got ",
                    grads.sizes(), " and ", gradients.sizes());
  at::Tensor sum = gradients[0] * grads[0];
  for (int64_t row = 1; row < gradients.size(0); ++row) {
    sum.add_(gradients[row] * grads[row]);
  }
  return sum.to(dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(corrdet, m) {
  // The sum over rows of grads[row] * gradients[row], in `dtype`. values: what the gradients are
  // with respect to. They are not read, but the result depends on them: autograd has to know.
  m.def(
      "weighted_rows(Tensor grads, Tensor gradients, ScalarType dtype, Tensor? values=None)"
      " -> Tensor");
}

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("weighted_rows", &weighted_rows); }
#ifdef CORRDET_WITH_CUDA
TORCH_LIBRARY_IMPL(corrdet, CUDA, m) { m.impl("weighted_rows", &weighted_rows); }
#endif

}  // namespace corrdet
