"""Differentiable ranks."""

import math

import torch
from torch import Tensor

from .._backend import backend
from .._checks import check_floating, check_positive
from .._transforms import differentiable, register_fake


def soft_rank(values: Tensor, strength: float = 1.0) -> Tensor:
    """Compute ascending soft ranks, the largest value getting about n.

    They are the projection of values / strength onto the permutahedron of (1, ..., n):
    Blondel et al. 2020, "Fast Differentiable Sorting and Ranking", Eq. 6 with the quadratic
    regularizer, in O(n log n). With the values in ascending order t_1 <= ... <= t_n the ranks are
    piecewise linear in them: neighbours are pooled where their distance is small beside `strength`,
    and

        rank_i = (mean position in the pool) + (t_i - mean of the pool) / strength.

    Values at least `strength` apart from each other have their exact ranks and no gradient. From
    strength = 2 * (max - min) / n on there is certainly one pool: the ranks are then an affine
    function of the values with mean (n + 1) / 2, and tell no more than the values themselves do.
    Useful strengths lie between. The sum is always n (n + 1) / 2, and equal values have equal
    ranks.

    The gradient within a pool is (g_i - mean of g over the pool) / strength, in reverse and forward
    mode; where pools do not change the second derivative is 0.
    Results do not depend on the number of threads, and are the same on every run.

    Args:
        values: (..., n), rows to rank along the last dimension; float16, bfloat16, float32 or
            float64, any strides. The halves are computed in float32, and sums in float64 always. n
            may be 0 or 1.
        strength: regularization strength, in the unit of the values; positive and finite.
            The smaller, the closer to exact ranks.

    Returns:
        (..., n) soft ranks between 1 (smallest) and n (largest), in the dtype of the values. A row
        with a NaN or an infinite value has NaN ranks and gradients.

    Raises:
        TypeError: `values` is not a floating point tensor, or `strength` not a number.
        ValueError: `values` has no dimension, or `strength` is not positive and finite.
    """
    check_floating("values", values)
    if values.dim() == 0:
        raise ValueError("values must have shape (..., n), got a 0-dimensional tensor")
    check_positive("strength", strength)
    if backend(values.device) == "reference":
        return reference(values, strength)
    return _call(values, float(strength))[0]


def reference(values: Tensor, strength: float) -> Tensor:
    """The twin of :func:`corrdet.ops.soft_rank`, in float64."""
    if values.numel() == 0:
        return values.clone()
    rows = values.reshape(-1, values.shape[-1]).double()
    ranks = torch.stack([_reference_row(row, strength) for row in rows])
    finite = rows.isfinite().all(-1, keepdim=True)
    return torch.where(finite, ranks, math.nan).reshape(values.shape).to(values.dtype)


def _reference_row(values: Tensor, strength: float) -> Tensor:
    """Soft ranks of values (n,), n >= 1, by isotonic regression's min-max formula, O(n^2)."""
    n = len(values)
    position = torch.arange(1, n + 1, dtype=values.dtype, device=values.device)
    sorted_values, permutation = values.sort(stable=True)
    target = sorted_values / strength - position
    # mean[a, b] of target[a .. b]; undefined below the diagonal.
    sums = torch.cat([target.new_zeros(1), target.cumsum(0)])
    length = position[None, :] - position[:, None] + 1
    mean = (sums[None, 1:] - sums[:-1, None]) / length.clamp(min=1)
    mean = torch.where(length >= 1, mean, math.inf)
    # regression[i] = max over a <= i of min over b >= i of mean[a, b]
    smallest = mean.flip(1).cummin(1).values.flip(1)  # [a, i]
    smallest = torch.where(length >= 1, smallest, -math.inf)
    regression = smallest.max(0).values
    return torch.zeros_like(values).scatter(0, permutation, sorted_values / strength - regression)


def example(size: int, seed: int = 0) -> tuple:
    """Arguments of a call with two rows of `size` values."""
    values = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_(), 10 / size


@register_fake("soft_rank")
def _(values, strength):
    ranks = values.new_empty(values.shape)
    permutation = values.new_empty(values.shape, dtype=torch.int64)
    pools = values.new_empty(values.shape, dtype=torch.int64)
    return ranks, permutation, pools


@register_fake("soft_rank_backward")
def _(grad, permutation, pools, strength):
    return grad.new_empty(grad.shape)


def _setup_context(ctx, inputs, output):
    _, ctx.strength = inputs
    ctx.mark_non_differentiable(*output[1:])
    return output[1:]


def _backward(ctx, grad_ranks, *_):
    return _call_backward(grad_ranks, *ctx.saved_tensors, ctx.strength), None


def _jvp(ctx, tangent, _):
    return _call_backward(tangent, *ctx.saved_tensors, ctx.strength), None, None


def _setup_backward(ctx, inputs, output):
    _, permutation, pools, ctx.strength = inputs
    return permutation, pools


# The matrix of the derivatives is symmetric, and the same wherever pools are.
def _backward_backward(ctx, grad):
    return _call_backward(grad, *ctx.saved_tensors, ctx.strength), None, None, None


def _backward_jvp(ctx, tangent, *_):
    return _call_backward(tangent, *ctx.saved_tensors, ctx.strength)


_call = differentiable("soft_rank", _setup_context, _backward, _jvp)
_call_backward = differentiable(
    "soft_rank_backward", _setup_backward, _backward_backward, _backward_jvp
)
