"""Builds the extension `corrdet._C` against the torch that will load it.

pip builds in isolation: `import torch` does not find the environment's torch there, and a torch
that pip fetched for the build could differ from the one that loads the result. So torch is no
build requirement, and the environment's own is found beside the interpreter.

Environment variables: CORRDET_EXTENSION=0 for a package without it, whose operators run in
PyTorch's own operations and which needs neither torch nor a compiler to be built; CORRDET_CUDA
(auto, 0 or 1), TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS, and CORRDET_SANITIZE=1 for
tools/sanitize.sh.
"""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# They describe the package and compile nothing, so they must work without torch or a compiler.
METADATA_COMMANDS = {"egg_info", "dist_info", "sdist", "clean", "--name", "--version"}

# Data-center GPUs of two generations, and code that drivers translate for later ones; used where no
# GPU is visible.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"

# Of messages that say what is missing.
OR_WITHOUT = (
    "Or set CORRDET_EXTENSION=0 to do without the extension: the operators then run in PyTorch's "
    "own operations, slower."
)

# One folder whatever the command, so that `pip install -e .` after an edit compiles only what
# changed. setuptools gives editable installs a temporary folder, lost with all objects in it.
OBJECTS = "build/objects"

# A build to be tested, not used. Conversions of floats to integers too small for them, checks of
# the standard library's containers, and overflow, which Python's own -fwrapv would allow, are no
# part of "undefined" by themselves.
SANITIZE = os.environ.get("CORRDET_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", "-D_GLIBCXX_ASSERTIONS"]
SANITIZED += SANITIZERS


def fail(message):
    """Stop with `message` alone: pip shows it without a traceback."""
    sys.exit(f"corrdet: {message}")


def find_torch():
    """Import torch, from the interpreter's own environment where pip hides that from the build."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            fail(f"torch is installed but cannot be imported: {error}.")
    else:
        return torch
    folders = [sysconfig.get_path("platlib"), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # a virtual environment does not see the user's packages
        folders.append(site.getusersitepackages())
    for folder in dict.fromkeys(folders):
        # Appended, so that the tools of the isolated build keep precedence.
        site.addsitedir(folder)
        try:
            import torch
        except ModuleNotFoundError as error:
            if error.name != "torch":
                fail(f"torch in {folder} cannot be imported: {error}.")
        else:
            return torch
    fail(
        f"no torch in the environment of {sys.executable}. The extension is compiled against the "
        "torch that will load it: install torch first, then run this again. If torch is "
        "installed and the build runs in an isolated virtual environment, build without: "
        f"`python -m build --no-isolation`, or --no-build-isolation of pip and uv. {OR_WITHOUT}"
    )


def find_compiler():
    """Return the command of the C++ compiler that torch's build code will call."""
    choices = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for choice in choices:
        if shutil.which(shlex.split(choice)[0]):
            return choice
    fail(
        f"no C++ compiler: looked for {', '.join(choices)}. Install one (on Debian and Ubuntu: "
        f"apt-get install g++) or name one in the environment variable CXX. {OR_WITHOUT}"
    )


def find_cuda_home():
    """Return the folder of the CUDA toolkit, or None."""
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if chosen:
        return Path(chosen) if Path(chosen, "bin", "nvcc").is_file() else None
    nvcc = shutil.which("nvcc")
    candidates = [Path(nvcc).parent.parent] if nvcc else []
    candidates.append(Path("/usr/local/cuda"))
    candidates = [home for home in candidates if (home / "bin" / "nvcc").is_file()]
    # An nvcc on PATH can be a script that calls a toolkit elsewhere: prefer one with its headers.
    headers = ("include/cuda_runtime_api.h", "targets/*/include/cuda_runtime_api.h")
    complete = [home for home in candidates if any(list(home.glob(path)) for path in headers)]
    return next(iter(complete + candidates), None)


def nvcc_release(cuda_home):
    """Return the toolkit's release, as "13.0"."""
    command = [str(cuda_home / "bin" / "nvcc"), "--version"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", output)
    if release is None:
        fail(f"`{shlex.join(command)}` names no release. Set CUDA_HOME to a CUDA toolkit.")
    return release.group(1)


def choose_cuda(torch):
    """Return the toolkit's folder if the CUDA kernels are to be built, else None.

    A visible GPU is not asked for: images are often built on machines without one.
    """
    mode = os.environ.get("CORRDET_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        fail(f"CORRDET_CUDA is {mode!r}; it can be auto, 0 or 1.")
    if mode == "0":
        return None
    if torch.version.cuda is None:
        if mode == "1":
            fail(
                f"CORRDET_CUDA=1, but torch {torch.__version__} is a build without CUDA. Install "
                "a torch with CUDA, or set CORRDET_CUDA=0."
            )
        return None
    cuda_home = find_cuda_home()
    if cuda_home is None:
        if mode == "1":
            fail(
                "CORRDET_CUDA=1, but there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda. "
                f"Install the CUDA toolkit {torch.version.cuda}, which torch {torch.__version__} "
                "was built with, or set CORRDET_CUDA=0."
            )
        return None
    release = nvcc_release(cuda_home)
    if release.split(".")[0] != torch.version.cuda.split(".")[0]:
        fail(
            f"nvcc in {cuda_home} is of CUDA {release}, but torch {torch.__version__} was built "
            f"with CUDA {torch.version.cuda}, and their major versions must agree. Install the "
            f"CUDA toolkit {torch.version.cuda} and set CUDA_HOME to it, or set CORRDET_CUDA=0 to "
            "build for the CPU only."
        )
    return cuda_home


def architectures(torch):
    """Return the GPU architectures to compile for, as TORCH_CUDA_ARCH_LIST has them."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    if not torch.cuda.is_available():
        return DEFAULT_ARCHITECTURES
    devices = range(torch.cuda.device_count())
    capabilities = sorted({torch.cuda.get_device_capability(device) for device in devices})
    return ";".join(f"{major}.{minor}" for major, minor in capabilities)


def uses_openmp(torch):
    """Tell whether at::parallel_for in this torch's headers is made of OpenMP pragmas."""
    config = Path(torch.__file__).parent / "include" / "ATen" / "Config.h"
    return sys.platform == "linux" and "AT_PARALLEL_OPENMP 1" in config.read_text()


def prefer_own_ninja():
    """Put the environment's ninja on PATH, where it is if the environment is not activated.

    Another version of ninja would compile everything anew.
    """
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja", path=scripts):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


class BuildPython(build_py):
    """Puts configs/ into wheels, where corrdet.configs looks for them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "corrdet", "configs_installed")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


def source_files(*suffixes):
    """Return the files of csrc/ with these suffixes, relative to this folder, sorted."""
    files = (ROOT / "csrc").glob("**/*")
    return sorted(str(f.relative_to(ROOT)) for f in files if f.suffix in suffixes)


def describe_extension():
    """Return setup()'s arguments for commands that compile nothing."""
    sources = source_files(".cpp", ".cu")
    extension = Extension("corrdet._C", sources, depends=source_files(".h", ".cuh"))
    return {"ext_modules": [extension], "cmdclass": {"build_py": BuildPython}}


def build_extension():
    """Return setup()'s arguments for commands that compile."""
    torch = find_torch()
    os.environ["CXX"] = find_compiler()
    prefer_own_ninja()
    cuda_home = choose_cuda(torch)

    macros = {"CORRDET_TORCH_VERSION": torch.__version__}
    defines, cuda_sources, nvcc_flags = [], [], []
    if cuda_home is not None:
        os.environ["CUDA_HOME"] = str(cuda_home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(torch)
        # Keeps what ptxas says about registers and spills; tools/cuda_report.py reads it.
        os.environ.setdefault("PYTORCH_NVCC", shlex.quote(str(ROOT / "tools" / "nvcc.sh")))
        macros["CORRDET_CUDA_VERSION"] = nvcc_release(cuda_home)
        macros["CORRDET_CUDA_ARCHS"] = re.sub(r"[;\s]+", ";", os.environ["TORCH_CUDA_ARCH_LIST"])
        defines = [("CORRDET_WITH_CUDA", None)]
        cuda_sources = source_files(".cu")
        nvcc_flags = ["-O3", "-lineinfo", "--ptxas-options=-v"]

    # Imported after CUDA_HOME is set: the module reads it once.
    from torch.utils import cpp_extension

    openmp = ["-fopenmp"] if uses_openmp(torch) else []
    make_extension = cpp_extension.CppExtension
    if cuda_home is not None:
        make_extension = cpp_extension.CUDAExtension
    extension = make_extension(
        "corrdet._C",
        sorted(source_files(".cpp") + cuda_sources),
        depends=source_files(".h", ".cuh"),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=defines,
        extra_compile_args={
            # -g0: Python's own flags ask for debug information, ten times the size of the code.
            # -ffp-contract=off: fused multiply-adds would make IoU(a, b) differ from IoU(b, a).
            "cxx": [
                *("-O3", "-g0", "-ffp-contract=off", *openmp),
                *(SANITIZED if SANITIZE else ()),
                *(f'-D{name}="{value}"' for name, value in macros.items()),
            ],
            "nvcc": nvcc_flags,
        },
        extra_link_args=[*openmp, *(SANITIZERS if SANITIZE else ())],
    )

    class BuildExtension(cpp_extension.BuildExtension):
        def run(self):
            self.build_temp = OBJECTS + "-sanitized" * SANITIZE
            super().run()

    print(f"corrdet: compiling {len(extension.sources)} files with {macros}", flush=True)
    commands = {"build_ext": BuildExtension, "build_py": BuildPython}
    return {"ext_modules": [extension], "cmdclass": commands}


def describe_package():
    """Return setup()'s arguments for the command of this process."""
    wanted = os.environ.get("CORRDET_EXTENSION", "1")
    if wanted not in ("0", "1"):
        fail(f"CORRDET_EXTENSION is {wanted!r}; it can be 0 or 1.")
    if wanted == "0":
        return {"cmdclass": {"build_py": BuildPython}}
    compiles = METADATA_COMMANDS.isdisjoint(sys.argv[1:])
    return build_extension() if compiles else describe_extension()


if __name__ == "__main__":
    setup(**describe_package())
