"""Checks of arguments that the operators share. They run before any kernel."""

import torch
from torch import Tensor

from ._extension import HAS_CUDA

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = ("iou", "giou", "diou", "ciou")


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


def check_boxes(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise unless both are (N, 4) boxes of one dtype on one device."""
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_floating(name, boxes)
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
        check_device(name, boxes)
    if boxes1.dtype != boxes2.dtype:
        raise TypeError(
            f"boxes1 and boxes2 must have the same dtype, got {boxes1.dtype} and {boxes2.dtype}"
        )
    if boxes1.device != boxes2.device:
        raise ValueError(
            f"boxes1 and boxes2 must be on the same device, got {boxes1.device} and {boxes2.device}"
        )


def check_kind(kind: str) -> None:
    """Raise a ValueError unless `kind` names a kind of IoU."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")


def check_pairs(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise a ValueError unless there are as many boxes in one as in the other."""
    if boxes1.shape[0] != boxes2.shape[0]:
        raise ValueError(
            "boxes1 and boxes2 must hold the same number of boxes, got "
            f"{boxes1.shape[0]} and {boxes2.shape[0]}"
        )


def check_soft_rank(values: Tensor, strength: float) -> None:
    """Raise unless `values` has a last dimension to rank along and `strength` is positive."""
    check_floating("values", values)
    if values.dim() == 0:
        raise ValueError("values must have shape (..., n), got a 0-dimensional tensor")
    check_device("values", values)
    check_positive("strength", strength)


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive and finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def no_double_backward(name: str):
    """Return an autograd formula that says that `name` can be differentiated only once."""

    def backward(ctx, *grads):
        raise NotImplementedError(f"{name} can be differentiated once, not twice")

    return backward
