"""Checks of arguments that the operators share. They run before any kernel."""

import torch
from torch import Tensor

from ._extension import HAS_CUDA

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that kernels compute in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless `tensor` is a tensor of a dtype with kernels."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got "
            f"{str(tensor.dtype).removeprefix('torch.')}"
        )


def check_device(name: str, tensor: Tensor) -> None:
    """Raise unless there are kernels for the device of `tensor`."""
    device = tensor.device.type
    if device == "cuda" and not HAS_CUDA:
        raise RuntimeError(
            f"{name} is on {tensor.device}, but corrdet was built without CUDA. Build it again "
            "with `CORRDET_CUDA=1 pip install -e .`, which needs the CUDA toolkit's nvcc and a "
            "torch with CUDA, or move the tensors to the CPU."
        )
    if device not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} must be on a CPU or CUDA device, got {tensor.device}")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive and finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
