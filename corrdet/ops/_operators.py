"""Operators in plain PyTorch, registered as the compiled ones are: ``torch.ops.corrdet_torch``."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable, imported when it is called
from torch.autograd import forward_ad

from ._backend import warn_of_a_missing_extension

NAMESPACE = "corrdet_torch"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operator of a schema, for every device.

    A tangent that reaches it is an error, as in csrc/forward_mode: it would be lost in silence.
    """
    name = schema.partition("(")[0]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        @torch.no_grad()
        def kernel(*arguments):
            warn_of_a_missing_extension(arguments[0].device)
            return function(*arguments)

        def refuse_tangents(keys, *arguments):
            for argument in arguments:
                if isinstance(argument, Tensor) and _has_tangent(argument):
                    raise NotImplementedError(
                        f"{NAMESPACE}::{name} has no forward mode; call the function of "
                        "corrdet.ops instead, outside of torch.compile"
                    )
            with torch._C._AutoDispatchBelowADInplaceOrView():
                overload = getattr(getattr(torch.ops, NAMESPACE), name).default
                keys = keys & torch._C._after_ADInplaceOrView_keyset
                return overload.redispatch(keys, *arguments)

        LIBRARY.define(schema)
        # Where torch.compile runs code as it is, it tries to compile the functions called there.
        LIBRARY.impl(name, _disable_dynamo(kernel), "CompositeExplicitAutograd")
        LIBRARY.impl(name, _disable_dynamo(refuse_tangents), "ADInplaceOrView", with_keyset=True)
        return function

    return register


def _has_tangent(tensor: Tensor) -> bool:
    if forward_ad._current_level < 0:
        return False
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None
    except RuntimeError:  # torch.compile cannot tell
        return True
