"""Operators with compiled kernels for CPU and CUDA: box IoUs and soft ranks.

Each is checked, differentiable, and works with :func:`torch.compile`; :mod:`corrdet.ops.reference`
has the same functions in plain PyTorch."""

from .elementwise_iou import elementwise_iou
from .pairwise_iou import pairwise_iou
from .soft_rank import soft_rank

__all__ = ["elementwise_iou", "pairwise_iou", "soft_rank"]
