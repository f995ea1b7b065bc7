"""The operators in plain PyTorch: obvious, slow, and what the kernels are compared with.

``corrdet.ops.reference.<name>`` is the ``reference`` of the module ``corrdet.ops.kernels.<name>``.
"""

from collections.abc import Callable
from typing import Any

from .kernels import OPERATORS

globals().update({name: module.reference for name, module in OPERATORS.items()})


def __getattr__(name: str) -> Callable[..., Any]:
    # For type checkers, which do not see what is found by listing.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
