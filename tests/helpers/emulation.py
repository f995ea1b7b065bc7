"""Runs csrc's kernels on the host: compiled with the emulation of CUDA in tests/ops/emulation."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC, HERE = ROOT / "csrc", ROOT / "tests/ops/emulation"
ORDERS = ("forward", "reverse", "random")


class Options(ctypes.Structure):
    """As in emulated_device.h."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("order", "grid", "launch", "skip_barrier", "missing")
    ]


class Argument(ctypes.Structure):
    """As in emulated_device.h."""

    _fields_ = [
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
        ("text", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("item_bytes", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, value):
        if value is None:
            return cls()
        if isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            return cls(data=value.data_ptr(), count=value.numel(), item_bytes=value.element_size())
        if isinstance(value, str):
            return cls(text=value.encode())
        return cls(real=value) if isinstance(value, float) else cls(integer=value)


class Emulator:
    """The functions that csrc's launch headers name with CORRDET_EMULATED, for CPU tensors."""

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))
        self.library.run.restype = self.library.faulty.restype = ctypes.c_char_p

    def run(self, name, dtype, *arguments, order="forward", grid=8, launch=0, skip_barrier=-1,
            missing=0):  # fmt: skip
        """Call one: tensors, numbers, names and None (no tensor) for its parameters.

        Outputs are tensors to be written to.

        Args:
            order: of threads and blocks: "forward", "reverse" or "random".
            grid: most blocks.
            launch: which launch of the function `skip_barrier` is for.
            skip_barrier: number of a barrier that does nothing.
            missing: values by which the outputs are declared too short.

        Raises:
            RuntimeError: the emulation found a fault.
        """
        full_name = f"{name}_{str(dtype).removeprefix('torch.')}"
        options = Options(ORDERS.index(order), grid, launch, skip_barrier, missing)
        array = (Argument * len(arguments))(*map(Argument.of, arguments))
        count = ctypes.c_int64(len(arguments))
        fault = self.library.run(full_name.encode(), ctypes.byref(options), array, count)
        if fault:
            raise RuntimeError(fault.decode())

    def faulty(self, fault, order):
        """Run a kernel with a fault; returns what was found, and the kernel's output."""
        values, result = torch.arange(8.0), torch.empty(16)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, result)]
        number = ctypes.c_int64(ORDERS.index(order))
        message = self.library.faulty(ctypes.c_int64(fault), number, *pointers)
        return message.decode(), result


@pytest.fixture(scope="session")
def emulator(request):
    """The kernels, compiled once per version of their sources."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    headers = sorted(CSRC.glob("**/*_launch.cuh"))
    sources = sorted(HERE.glob("*.h")) + sorted(HERE.glob("*.cpp"))
    sources += sorted(CSRC.glob("**/*.h")) + sorted(CSRC.glob("**/*.cuh"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    library = request.config.cache.mkdir("cuda_emulation") / f"kernels_{digest}.so"
    if not library.exists():
        # Under another name first: another run may look for it meanwhile.
        partial = library.with_suffix(f".{os.getpid()}")
        included = [HERE / "emulated_device.h", *headers]
        command = [
            *compiler.split(), "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC",
            f"-I{HERE}", f"-I{CSRC}", *(f"-include{path}" for path in included),
            str(HERE / "emulation.cpp"), "-o", str(partial),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        partial.rename(library)
    return Emulator(library)
