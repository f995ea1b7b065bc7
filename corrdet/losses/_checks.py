"""Checks of arguments that the loss functions share."""

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """
    Raises:
        TypeError: one is no floating-point tensor.
        ValueError: shapes or devices differ; the message names all of them.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    names = " and ".join(tensors)
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
        raise ValueError(f"{names} must have the same shape, got {shapes}")
    if len({tensor.device for tensor in tensors.values()}) > 1:
        devices = " and ".join(str(tensor.device) for tensor in tensors.values())
        raise ValueError(f"{names} must be on the same device, got {devices}")


def check_per_positive(**tensors: Tensor) -> None:
    """As :func:`check_same_shape`, and every shape is (P,)."""
    check_same_shape(**tensors)
    for name, tensor in tensors.items():
        if tensor.dim() != 1:
            raise ValueError(f"{name} must have shape (P,), got {tuple(tensor.shape)}")


def widened(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` for a base in [0, ...), with a gradient that is finite also at 0."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent < 1:
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**exponent
