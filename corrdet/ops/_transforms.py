"""Derivatives of operators, also under torch.func's transforms and in forward mode.

PyTorch's operators know reverse mode alone: under ``torch.func.grad`` they fail, and their tangents
are lost in silence. So there they are called through an ``autograd.Function``, which has it all.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from ._backend import backend
from ._extension import extension
from ._operators import NAMESPACE
from .pure import __name__ as _  # noqa: F401, registers the operators

# Where operators are registered, by what computes them.
NAMESPACES = {"torch": NAMESPACE} | ({"extension": "corrdet"} if extension is not None else {})


# That torch.compile traces the question is known of these versions; 2.4 does not. In others
# compiled transforms are as PyTorch has them: refused.
_CAN_BE_ASKED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


def is_transformed() -> bool:
    """Whether the call is under a transform of torch.func, or in forward mode."""
    if not _CAN_BE_ASKED and torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def find_operator(name: str, device: torch.device) -> Callable[..., Any]:
    """``torch.ops.<namespace>.<name>`` that computes on a device."""
    return getattr(getattr(torch.ops, NAMESPACES.get(backend(device), NAMESPACE)), name)


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what an operator returns in shapes and dtypes, whatever computes it."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for namespace in NAMESPACES.values():
            torch.library.register_fake(f"{namespace}::{name}", function)
        return function

    return register


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Register the derivative of an operator, whatever computes it."""
    for namespace in NAMESPACES.values():
        torch.library.register_autograd(
            f"{namespace}::{name}", backward, setup_context=setup_context
        )


def differentiable(
    name: str,
    setup_context: Callable[..., tuple],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the derivatives of an operator, and return a function to call it.

    Args:
        name: of the operator.
        setup_context: of (ctx, inputs, output): tensors to save; it may set attributes of `ctx`.
        backward: of (ctx, *gradients), as of an ``autograd.Function``.
        jvp: of (ctx, *tangents).
    """

    def save(ctx, inputs, output):
        ctx.save_for_backward(*setup_context(ctx, inputs, output))

    register_autograd(name, backward, save)

    def save_for_both(ctx, inputs, output):
        tensors = setup_context(ctx, inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    members = {
        "generate_vmap_rule": True,
        "forward": staticmethod(lambda *inputs: find_operator(name, inputs[0].device)(*inputs)),
        "setup_context": staticmethod(save_for_both),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
    }
    function = type(name, (torch.autograd.Function,), members)

    def call(*inputs):
        if is_transformed():
            if torch.compiler.is_compiling():
                # A function with a jvp cannot be traced: what is around it is run as it is.
                torch._dynamo.graph_break()
            return function.apply(*inputs)
        return find_operator(name, inputs[0].device)(*inputs)

    return call


def refuse(message: str) -> Callable[..., Any]:
    """A derivative that raises a NotImplementedError."""

    def derivative(ctx, *gradients):
        raise NotImplementedError(message)

    return derivative
