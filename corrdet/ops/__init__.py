"""Box IoUs, soft ranks and pairwise errors, with compiled kernels for CPU and CUDA.

Where there is no compiled extension for a device, the same is computed with PyTorch's operations,
as exactly and in as little memory: :func:`backend` tells, :class:`set_backend` chooses.

Each is checked, differentiable, and works with :func:`torch.compile` and, outside of it, with the
transforms of ``torch.func``; a derivative that there is not (of a ranking loss in forward mode, or
the second) is a NotImplementedError. :mod:`corrdet.ops.reference` has the same functions in plain
PyTorch. They are the modules of :mod:`corrdet.ops.kernels`, named
here so that editors and type checkers see their signatures; a test keeps the list complete.
"""

from ._backend import backend, set_backend
from .kernels.elementwise_iou import elementwise_iou
from .kernels.pairwise_iou import pairwise_iou
from .kernels.smooth_error import smooth_error
from .kernels.soft_rank import soft_rank
from .kernels.step_error import step_error

__all__ = [
    "backend",
    "elementwise_iou",
    "pairwise_iou",
    "set_backend",
    "smooth_error",
    "soft_rank",
    "step_error",
]


def __dir__() -> list[str]:
    return [*__all__, "kernels", "pure", "reference"]
