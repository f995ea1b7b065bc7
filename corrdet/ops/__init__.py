"""Operators with compiled kernels for CPU and CUDA: box IoUs, soft ranks and pairwise errors.

Each is checked, differentiable, and works with :func:`torch.compile` and, outside of it, with the
transforms of ``torch.func``; a derivative that there is not (of a ranking loss in forward mode, or
the second) is a NotImplementedError. :mod:`corrdet.ops.reference` has the same functions in plain
PyTorch. They are the modules of :mod:`corrdet.ops.kernels`, named
here so that editors and type checkers see their signatures; a test keeps the list complete.
"""

from .kernels.elementwise_iou import elementwise_iou
from .kernels.pairwise_iou import pairwise_iou
from .kernels.smooth_error import smooth_error
from .kernels.soft_rank import soft_rank
from .kernels.step_error import step_error

__all__ = ["elementwise_iou", "pairwise_iou", "smooth_error", "soft_rank", "step_error"]


def __dir__() -> list[str]:
    return [*__all__, "kernels", "reference"]
