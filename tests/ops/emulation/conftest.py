"""Compiles csrc's kernels with the host emulation of CUDA, once per version of their sources."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
KINDS = ("iou", "giou", "diou", "ciou")
STEP_LOSSES = ("average_precision", "step", "step_negatives", "rank_sort", "alrp")
ORDERS = ("forward", "reverse", "random")


class Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("order", "grid", "threads", "skip_barrier", "missing")
    ]


class Emulator:
    """The functions of emulated_kernels.cpp for CPU tensors. A fault found raises a RuntimeError.

    Every method takes the options `order` (of threads and blocks), `grid` (most blocks), `threads`
    (of a block, for soft_rank; for the pairwise errors, which have several, the launch that
    `skip_barrier` is for), `skip_barrier` (number of a barrier that does nothing) and `missing`
    (values by which the output is declared too short).
    """

    def __init__(self, library):
        self.library = ctypes.CDLL(str(library))

    def _call(self, name, *arguments, order="forward", grid=8, threads=64, skip_barrier=-1,
              missing=0):  # fmt: skip
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        options = Options(ORDERS.index(order), grid, threads, skip_barrier, missing)
        converted = [ctypes.byref(options)]
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.is_contiguous()
                converted.append(ctypes.c_void_p(argument.data_ptr()))
            elif argument is None:
                converted.append(None)
            elif isinstance(argument, float):
                converted.append(ctypes.c_double(argument))
            else:
                converted.append(ctypes.c_int64(argument))
        fault = function(*converted)
        if fault:
            raise RuntimeError(fault.decode())

    @staticmethod
    def _typed(name, tensor):
        return f"{name}_{str(tensor.dtype).removeprefix('torch.')}"

    def pairwise_iou(self, boxes1, boxes2, kind, **options):
        n, m = len(boxes1), len(boxes2)
        result = boxes1.new_full((n, m), -9)
        name = self._typed("pairwise_iou", boxes1)
        self._call(name, boxes1, n, boxes2, m, KINDS.index(kind), result, **options)
        return result

    def pairwise_iou_backward(self, grad, boxes1, boxes2, kind, **options):
        n, m = len(boxes1), len(boxes2)
        transposed = not grad.is_contiguous()
        result = torch.full_like(boxes1, -9)
        self._call(
            self._typed("pairwise_iou_backward", boxes1), grad.t() if transposed else grad,
            int(transposed), boxes1, n, boxes2, m, KINDS.index(kind), result, **options,
        )  # fmt: skip
        return result

    def elementwise_iou(self, grad, boxes1, boxes2, kind, **options):
        ious, grad1, grad2 = (torch.full_like(like, -9) for like in (grad, boxes1, boxes2))
        self._call(
            self._typed("elementwise_iou", boxes1), grad, boxes1, boxes2, len(grad),
            KINDS.index(kind), ious, grad1, grad2, **options,
        )  # fmt: skip
        return ious, grad1, grad2

    def soft_rank(self, values, strength, **options):
        values, permutation = values.sort(stable=True)
        ranks, pools = torch.full_like(values, -9), torch.full_like(permutation, -9)
        self._call(
            self._typed("soft_rank", values), values, permutation, *values.shape, strength, ranks,
            pools, **options,
        )  # fmt: skip
        return ranks, permutation, pools

    def soft_rank_backward(self, grad, permutation, pools, strength, **options):
        result = torch.full_like(grad, -9)
        self._call(
            self._typed("soft_rank_backward", grad), grad, permutation, pools, *grad.shape,
            strength, result, **options,
        )  # fmt: skip
        return result

    def step_error(self, logits, targets, loss, delta, localization=None, **options):
        positives = -1 if localization is None else len(localization)
        rows = 2 if loss == "rank_sort" else 1
        values, gradients = logits.new_full((2,), -9), logits.new_full((rows, len(logits)), -9)
        on_localization = logits.new_full((max(positives, 0),), -9)
        self._call(
            self._typed("step_error", logits), logits, targets.double(), len(logits),
            STEP_LOSSES.index(loss), delta, localization, positives, values, gradients,
            on_localization, **options,
        )  # fmt: skip
        return values, gradients, on_localization

    def smooth_error(self, logits, targets, distance, balance, lam, delta, ious=None,
                     weight_by_iou=True, most_cells=4096, **options):  # fmt: skip
        flags = (distance == "cross_entropy") + 2 * (balance == "negatives") + 4 * weight_by_iou
        value, gradient = logits.new_full((1,), -9), torch.full_like(logits, -9)
        self._call(
            self._typed("smooth_error", logits), logits, targets.double(), len(logits), flags, lam,
            delta, ious, -1 if ious is None else len(ious), most_cells, value, gradient, **options,
        )  # fmt: skip
        return value, gradient

    def faulty(self, fault, order):
        values, result = torch.arange(8.0), torch.empty(16)
        function = self.library.faulty
        function.restype = ctypes.c_char_p
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, result)]
        number = ctypes.c_int64(ORDERS.index(order))
        message = function(ctypes.c_int64(fault), number, *pointers)
        return message.decode(), result


@pytest.fixture(scope="session")
def emulator(request):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = sorted(HERE.glob("*.h")) + sorted(HERE.glob("*.cpp"))
    sources += sorted(CSRC.glob("**/*.h")) + sorted(CSRC.glob("**/*.cuh"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    library = request.config.cache.mkdir("cuda_emulation") / f"kernels_{digest}.so"
    if not library.exists():
        # Under another name first: another run may look for it meanwhile.
        partial = library.with_suffix(f".{os.getpid()}")
        command = [
            *compiler.split(), "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC",
            f"-I{HERE}", f"-I{CSRC}", str(HERE / "emulated_kernels.cpp"), "-o", str(partial),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        partial.rename(library)
    return Emulator(library)
