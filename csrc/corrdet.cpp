// The extension module corrdet._C: what it was built with. Operators register themselves, schema
// and kernels, in their folders; their fake kernels and autograd are in corrdet/ops.

#include <torch/extension.h>

#include <sstream>
#include <string>

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
