"""The operators in plain PyTorch: obvious, slow, and what the kernels are compared with.

``corrdet.ops.reference.<name>`` is the ``reference`` of the module ``corrdet.ops.kernels.<name>``.
"""

from .kernels.elementwise_iou import reference as elementwise_iou
from .kernels.pairwise_iou import reference as pairwise_iou
from .kernels.smooth_error import reference as smooth_error
from .kernels.soft_rank import reference as soft_rank
from .kernels.step_error import reference as step_error

__all__ = ["elementwise_iou", "pairwise_iou", "smooth_error", "soft_rank", "step_error"]


def __dir__() -> list[str]:
    return list(__all__)
