"""Ranking losses on a sigmoid: errors of pairs of samples, one of them positive, over all pairs.

No (P, N) matrix is ever made, and no pair left out.
"""

import math

import torch
from torch import Tensor

from .._backend import backend
from .._checks import check_positive, compute_dtype
from .._samples import (
    attach_gradient,
    check_per_positive,
    check_samples,
    example_samples,
    is_undefined,
    refuse_forward_mode,
    select_samples,
    spread_gradient,
    weighted_rows,
)
from .._transforms import differentiable, register_fake
from ..pure.samples import check_count, check_range, split_targets

# As in csrc/smooth_error/smooth_loss.h.
DISTANCES = ("cross_entropy", "sigmoid")
BALANCES = ("rank", "negatives")


def smooth_error(
    logits: Tensor,
    targets: Tensor,
    distance: str,
    balance: str,
    lam: float,
    delta: float,
    ious: Tensor | None,
    weight_by_iou: bool,
) -> Tensor:
    """Compute a ranking loss on the sigmoid or the softplus of lam * (s_v - s_u).

    The mean over the positives u of the sum over its false positives v of the distance, divided by
    a balance that is a constant. Pairs with s_v > s_u - delta count. The false positives are the
    negatives and, with ``ious``, the positives v with I_v < I_u.

    In O(S log P + P): the distance is expanded in series around the centres of cells of width
    1 / (2 lam), which leaves 1e-7 of the sums in float32 and 1e-13 in float64. For few samples, and
    logits so far apart that there would be more cells than samples, pairs are summed one by one.
    The result does not depend on the number of threads.

    Args:
        logits: (S,) float16, bfloat16, float32 or float64, any strides.
        targets: (S,) any dtype: 1 positive, 0 negative, -1 ignored.
        distance: ``"cross_entropy"``, softplus(lam x) / lam; or ``"sigmoid"``, sigmoid(lam x) with
            the error-driven update, whose gradient is the same.
        balance: ``"rank"``, the sum of sigmoid(lam x) over all samples that count, itself as 1 or,
            with ``ious``, as sigmoid(0) = 1/2; or ``"negatives"``, the number of negatives that
            count.
        lam: slope, positive and finite.
        delta: how far below a positive other samples count, positive and finite.
        ious: (P,) in [0, 1], of the positives in their order in ``logits``; a constant.
        weight_by_iou: with ``ious``, multiply the term of each positive with its IoU.

    Returns:
        scalar, at least float32, differentiable in ``logits``. 0 without positives; NaN, gradients
        too, where a logit that is not ignored, or an IoU, is not finite.

    Raises:
        TypeError, ValueError: an argument is not as described. The kernels for CUDA do not look at
            the values of ``targets`` and ``ious`` beforehand: where they are wrong, the result is
            NaN.
    """
    check_samples(logits, targets)
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {BALANCES}, got {balance!r}")
    check_positive("lam", lam)
    check_positive("delta", delta)
    if ious is not None:
        check_per_positive("ious", ious, logits)
        ious = ious.detach()
    options = distance, balance, float(lam), float(delta), ious, bool(weight_by_iou)
    if backend(logits.device) == "reference":
        positive, _ = split_targets(targets, False)
        if ious is not None:
            check_count("ious", ious, int(positive.sum()))
            check_range("ious", ious)
        return reference(logits, targets, *options)
    return _call(logits, targets, *options)[0][0]


def reference(
    logits: Tensor,
    targets: Tensor,
    distance: str,
    balance: str,
    lam: float,
    delta: float,
    ious: Tensor | None,
    weight_by_iou: bool,
) -> Tensor:
    """The twin of :func:`corrdet.ops.smooth_error`, pair by pair."""
    positives, negatives, s, n = select_samples(logits, targets)
    count = len(positives)
    if count == 0:
        zero = torch.zeros_like(logits, dtype=torch.float64)
        return attach_gradient(zero.sum(), logits, zero).to(compute_dtype(logits))
    # Row u is a positive, column v another sample.
    # Differences: beside a large logit s_u - delta would be rounded.
    counted_positives = s[None] - s[:, None] > -delta
    counted_negatives = n[None] - s[:, None] > -delta
    among_positives = counted_positives * (lam * (s[None] - s[:, None])).sigmoid()
    over_negatives = counted_negatives * (lam * (n[None] - s[:, None])).sigmoid()
    if ious is None:
        # As in the AP loss, a positive counts itself by 1.
        rank = among_positives.sum(1) - 0.5 + 1 + over_negatives.sum(1)
        false_positives = torch.zeros_like(counted_positives)
        weight = torch.ones_like(s)
    else:
        rank = among_positives.sum(1) + over_negatives.sum(1)
        iou = ious.detach().double()
        false_positives = counted_positives & (iou[None] < iou[:, None])
        weight = iou if weight_by_iou else torch.ones_like(iou)
    if balance == "negatives":
        rank = counted_negatives.sum(1).clamp(min=1)
    coefficient = weight / rank / count
    error = over_negatives.sum(1) + (false_positives * among_positives).sum(1)
    if distance == "cross_entropy":

        def pair_loss(difference, counted):
            # Not softplus(lam * difference): the product of huge logits is infinite.
            rest = torch.log1p(torch.exp(-lam * difference.abs())) / lam
            return torch.where(counted, difference.clamp(min=0) + rest, 0).sum(1)

        total = pair_loss(n[None] - s[:, None], counted_negatives)
        total = total + pair_loss(s[None] - s[:, None], false_positives)
    else:
        total = error
    value = (coefficient * total).sum()
    on_positives = (coefficient[:, None] * false_positives * among_positives).sum(0)
    on_positives = on_positives - coefficient * error
    on_negatives = (coefficient[:, None] * over_negatives).sum(0)
    gradient = spread_gradient(logits, positives, on_positives, negatives, on_negatives)
    if is_undefined(s, n):
        value, gradient = value * math.nan, gradient * math.nan
    return attach_gradient(value, logits, gradient).to(compute_dtype(logits))


def example(size: int, seed: int = 0) -> tuple:
    """Arguments of a call with `size` samples."""
    logits, labels, ious = example_samples(size, seed)
    return logits.requires_grad_(), labels, "cross_entropy", "rank", 8.0, 0.5, ious, True


@register_fake("smooth_error")
def _(logits, targets, distance, balance, lam, delta, ious, weight_by_iou):
    dtype = compute_dtype(logits)
    values = logits.new_empty(1, dtype=dtype)
    return values, logits.new_empty((1, logits.shape[0]), dtype=dtype)


def _setup_smooth(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    return output[1], inputs[0]


def _smooth_backward(ctx, grads, _):
    gradients, logits = ctx.saved_tensors
    return (weighted_rows(grads, gradients, logits.dtype, logits), *(None,) * 7)


_call = differentiable("smooth_error", _setup_smooth, _smooth_backward, refuse_forward_mode)
