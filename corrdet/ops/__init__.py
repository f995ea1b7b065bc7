"""Operators with compiled kernels for CPU and CUDA: box IoUs, soft ranks and pairwise errors.

Each is checked, differentiable, and works with :func:`torch.compile`; :mod:`corrdet.ops.reference`
has the same functions in plain PyTorch."""

from .elementwise_iou import elementwise_iou
from .pairwise_error import smooth_error, step_error
from .pairwise_iou import pairwise_iou
from .soft_rank import soft_rank

__all__ = ["elementwise_iou", "pairwise_iou", "smooth_error", "soft_rank", "step_error"]
