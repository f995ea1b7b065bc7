// The extension module corrdet._C: the schemas of the operators in namespace `corrdet`, and what is
// not an operator. Kernels register themselves in their op's folder; fake kernels and autograd in
// corrdet/ops.

#include <torch/extension.h>
#include <torch/library.h>

#include <sstream>
#include <string>

TORCH_LIBRARY(corrdet, m) {
  m.def("pairwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
  // With respect to boxes1. Every kind is symmetric: boxes2's is that of (grad^T, boxes2, boxes1).
  m.def("pairwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
  m.def("elementwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor");
  m.def(
      "elementwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind)"
      " -> (Tensor, Tensor)");
  // permutation: the position in its row of each value in ascending order. pools: the first sorted
  // position of the pool that each sorted position is in, or -1 throughout an undefined row.
  m.def(
      "soft_rank(Tensor values, float strength)"
      " -> (Tensor ranks, Tensor permutation, Tensor pools)");
  m.def(
      "soft_rank_backward(Tensor grad, Tensor permutation, Tensor pools, float strength)"
      " -> Tensor");
  // Pairwise errors of the ranking losses. values: (2,), the loss and its second part, 0 where it
  // has none. gradients: (rows, S) of each with respect to the logits, one row where there is one
  // part. localization_gradient: (P,) of the second part.
  m.def(
      "step_error(Tensor logits, Tensor targets, str loss, float delta, Tensor? localization)"
      " -> (Tensor values, Tensor gradients, Tensor localization_gradient)");
  m.def(
      "smooth_error(Tensor logits, Tensor targets, str distance, str balance, float lam,"
      " float delta, Tensor? ious, bool weight_by_iou) -> (Tensor values, Tensor gradients)");
  // The sum over rows of grads[row] * gradients[row], in `dtype`.
  m.def("weighted_rows(Tensor grads, Tensor gradients, ScalarType dtype) -> Tensor");
}

namespace {

at::Tensor weighted_rows(const at::Tensor& grads, const at::Tensor& gradients,
                         at::ScalarType dtype) {
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

TORCH_LIBRARY_IMPL(corrdet, CPU, m) { m.impl("weighted_rows", &weighted_rows); }
#ifdef CORRDET_WITH_CUDA
TORCH_LIBRARY_IMPL(corrdet, CUDA, m) { m.impl("weighted_rows", &weighted_rows); }
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

#ifndef CORRDET_TORCH_VERSION
#define CORRDET_TORCH_VERSION "unknown"
#endif

// corrdet/ops/_extension.py looks for this text in the file, to name the version where the
// extension does not load.
const char kBuiltWith[] = "corrdet built with torch " CORRDET_TORCH_VERSION;

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = std::string(kBuiltWith).substr(std::string("corrdet built with torch ").size());
  info["compiler"] = compiler();
  pybind11::list architectures;
#ifdef CORRDET_WITH_CUDA
#ifdef CORRDET_CUDA_VERSION
  info["cuda"] = CORRDET_CUDA_VERSION;
#else
  info["cuda"] = "unknown";
#endif
#ifdef CORRDET_CUDA_ARCHS
  std::istringstream names(CORRDET_CUDA_ARCHS);
  for (std::string name; std::getline(names, name, ';');) {
    if (!name.empty()) architectures.append(name);
  }
#endif
#else
  info["cuda"] = pybind11::none();
#endif
  info["architectures"] = architectures;
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled part of corrdet. Importing it registers the operators torch.ops.corrdet.*.";
  m.def("build_info", &build_info,
        "What this extension was built with: a dict of torch (str), compiler (str), cuda (str, or "
        "None for a build without CUDA) and architectures (list of str).");
}
