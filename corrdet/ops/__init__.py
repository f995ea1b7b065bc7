"""Operators with compiled kernels for CPU and CUDA: box IoUs, soft ranks and pairwise errors.

Each is checked, differentiable, and works with :func:`torch.compile` and, outside of it, with the
transforms of ``torch.func``; a derivative that there is not (of a ranking loss in forward mode, or
the second) is a NotImplementedError. :mod:`corrdet.ops.reference` has the same functions in plain
PyTorch. They are the modules of :mod:`corrdet.ops.kernels`.
"""

from collections.abc import Callable
from typing import Any

from .kernels import OPERATORS

__all__ = sorted(OPERATORS)

globals().update({name: getattr(module, name) for name, module in OPERATORS.items()})


def __getattr__(name: str) -> Callable[..., Any]:
    # For type checkers, which do not see what is found by listing.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
