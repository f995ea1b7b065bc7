"""Operators under torch.func's transforms and in forward mode.

PyTorch's operators know reverse mode alone: under ``torch.func.grad`` they fail, and their tangents
are lost in silence. So there they are called through an ``autograd.Function``, which has it all.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether the call is under a transform of torch.func, or in forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiable(
    name: str,
    setup_context: Callable[..., tuple],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the derivatives of ``torch.ops.corrdet.<name>``, and return a function to call it.

    Args:
        name: of the operator.
        setup_context: of (ctx, inputs, output): tensors to save; it may set attributes of `ctx`.
        backward: of (ctx, *gradients), as of an ``autograd.Function``.
        jvp: of (ctx, *tangents).
    """
    operator = getattr(torch.ops.corrdet, name)

    def save(ctx, inputs, output):
        ctx.save_for_backward(*setup_context(ctx, inputs, output))

    torch.library.register_autograd(f"corrdet::{name}", backward, setup_context=save)

    def save_for_both(ctx, inputs, output):
        tensors = setup_context(ctx, inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    members = {
        "generate_vmap_rule": True,
        "forward": staticmethod(lambda *inputs: operator(*inputs)),
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
        return operator(*inputs)

    return call


def refuse(message: str) -> Callable[..., Any]:
    """A derivative that raises a NotImplementedError."""

    def derivative(ctx, *gradients):
        raise NotImplementedError(message)

    return derivative
