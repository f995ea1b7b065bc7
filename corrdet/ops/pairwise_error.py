"""Errors of pairs of samples, one of them positive, summed over all pairs: the ranking losses.

No (P, N) matrix is ever made, and no pair left out. The gradient is computed with the loss, in two
passes over the samples.
"""

import torch
from torch import Tensor

from ._checks import check_device, check_floating, check_positive, no_double_backward

STEP_LOSSES = ("average_precision", "step", "step_negatives", "rank_sort", "alrp")
DISTANCES = ("cross_entropy", "sigmoid")
BALANCES = ("rank", "negatives")


def step_error(
    logits: Tensor,
    targets: Tensor,
    loss: str,
    delta: float = 1.0,
    localization: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a ranking loss on the step H(x) = clamp(x / (2 delta) + 1/2, 0, 1) of logits.

    For a positive u: FP_u is the sum of H(s_v - s_u) over the negatives v, TP_u the same over the
    other positives plus 1, rank_u = TP_u + FP_u. Means are over the P positives. Gradients are
    error-driven: the pair of u and v moves v up and u down by share_u * H(s_v - s_u) / P.

    ======================= ============================== =====================================
    loss                    first, second part             share_u
    ======================= ============================== =====================================
    ``"average_precision"`` 1 - mean of the interpolated   1 / rank_u, times
                            precision TP_u / rank_u        (1 - interpolated) / (1 - precision)
    ``"step"``              mean of FP_u / rank_u          1 / rank_u
    ``"step_negatives"``    mean of FP_u / N_u, with N_u   1 / N_u
                            the negatives of H > 0
    ``"rank_sort"``         ranking error: mean of         1 / rank_u; among positives see
                            FP_u / rank_u, where u counts  :func:`corrdet.losses.rank_sort_loss`
                            itself by 1/2; sorting error
    ``"alrp"``              1 - mean precision; mean of    (FP_u + the localization losses of the
                            the localization losses of     other positives, weighted by H) /
                            the v with s_v >= s_u, summed, (rank_u FP_u)
                            / rank_u
    ======================= ============================== =====================================

    In O((S + P) log P): as functions of a logit the sums are piecewise linear with 2P knots.
    Sums are in float64, and the result does not depend on the number of threads.

    Args:
        logits: (S,) float16, bfloat16, float32 or float64, any strides.
        targets: (S,) any dtype: 1 positive, 0 negative, -1 ignored; for ``"rank_sort"`` the IoUs
            of the positives, in (0, 1].
        loss: see the table.
        delta: half of the width in which H rises, positive and finite.
        localization: (P,) localization loss of each positive in the order of the positives in
            ``logits``; for ``"alrp"`` alone.

    Returns:
        two scalars, at least float32; the second is 0 where the loss has one part. The first is
        differentiable in ``logits``; the second for ``"rank_sort"`` in ``logits`` too, for
        ``"alrp"`` in ``localization``. 0 without positives; NaN, gradients too, where a logit that
        is not ignored is not finite.

    Raises:
        TypeError, ValueError: an argument is not as described. On CUDA the values of ``targets``
            are not looked at beforehand: where they are wrong, the result is NaN.
    """
    check_samples(logits, targets)
    if loss not in STEP_LOSSES:
        raise ValueError(f"loss must be one of {STEP_LOSSES}, got {loss!r}")
    check_positive("delta", delta)
    if (localization is not None) != (loss == "alrp"):
        raise ValueError(
            f"localization is for, and needed by, the loss 'alrp'; the loss is {loss!r} and "
            f"localization {'None' if localization is None else 'given'}"
        )
    if localization is not None:
        check_per_positive("localization", localization, logits)
    values = torch.ops.corrdet.step_error(logits, targets, loss, float(delta), localization)[0]
    return values[0], values[1]


def smooth_error(
    logits: Tensor,
    targets: Tensor,
    distance: str = "cross_entropy",
    balance: str = "rank",
    lam: float = 8.0,
    delta: float = 0.5,
    ious: Tensor | None = None,
    weight_by_iou: bool = True,
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
        TypeError, ValueError: an argument is not as described. On CUDA the values of ``targets``
            and ``ious`` are not looked at beforehand: where they are wrong, the result is NaN.
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
    return torch.ops.corrdet.smooth_error(
        logits, targets, distance, balance, float(lam), float(delta), ious, bool(weight_by_iou)
    )[0][0]


def check_samples(logits: Tensor, targets: Tensor) -> None:
    """Raise unless both are (S,) on one device, and logits floating point."""
    check_floating("logits", logits)
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if targets.is_complex() or targets.is_quantized:
        raise TypeError(f"targets must be integers or floating point, got {targets.dtype}")
    if logits.dim() != 1:
        raise ValueError(
            f"logits must have shape (S,), all of the batch in a row, got {tuple(logits.shape)}"
        )
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    check_device("logits", logits)
    if targets.device != logits.device:
        raise ValueError(
            f"targets must be on the device of logits, {logits.device}, got {targets.device}"
        )


def check_per_positive(name: str, values: Tensor, logits: Tensor) -> None:
    """Raise unless `values` is floating point (P,) on the device of `logits`."""
    check_floating(name, values)
    if values.dim() != 1:
        raise ValueError(f"{name} must have shape (P,), got {tuple(values.shape)}")
    if values.device != logits.device:
        raise ValueError(
            f"{name} must be on the device of logits, {logits.device}, got {values.device}"
        )


def _result_type(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


@torch.library.register_fake("corrdet::step_error")
def _(logits, targets, loss, delta, localization):
    dtype = _result_type(logits)
    rows = 2 if loss == "rank_sort" else 1
    positives = 0 if localization is None else localization.shape[0]
    return (
        logits.new_empty(2, dtype=dtype),
        logits.new_empty((rows, logits.shape[0]), dtype=dtype),
        logits.new_empty(positives, dtype=dtype),
    )


@torch.library.register_fake("corrdet::smooth_error")
def _(logits, targets, distance, balance, lam, delta, ious, weight_by_iou):
    dtype = _result_type(logits)
    values = logits.new_empty(1, dtype=dtype)
    return values, logits.new_empty((1, logits.shape[0]), dtype=dtype)


@torch.library.register_fake("corrdet::weighted_rows")
def _(grads, gradients, dtype):
    return gradients.new_empty(gradients.shape[1], dtype=dtype)


def _setup_step(ctx, inputs, output):
    logits, *_, localization = inputs
    ctx.dtype = logits.dtype
    ctx.localization_dtype = None if localization is None else localization.dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _step_backward(ctx, grads, *_):
    gradients, localization_gradient = ctx.saved_tensors
    on_logits = torch.ops.corrdet.weighted_rows(grads, gradients, ctx.dtype)
    on_localization = None
    if ctx.localization_dtype is not None:
        on_localization = torch.ops.corrdet.weighted_rows(
            grads[1:], localization_gradient[None], ctx.localization_dtype
        )
    return on_logits, None, None, None, on_localization


def _setup_smooth(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _smooth_backward(ctx, grads, _):
    (gradients,) = ctx.saved_tensors
    on_logits = torch.ops.corrdet.weighted_rows(grads, gradients, ctx.dtype)
    return (on_logits, *(None,) * 7)


torch.library.register_autograd("corrdet::step_error", _step_backward, setup_context=_setup_step)
torch.library.register_autograd(
    "corrdet::smooth_error", _smooth_backward, setup_context=_setup_smooth
)
torch.library.register_autograd("corrdet::weighted_rows", no_double_backward("a pairwise error"))
