"""Ranking losses on a step: errors of pairs of samples, one of them positive, over all pairs.

No (P, N) matrix is ever made, and no pair left out.
"""

import math
from typing import NamedTuple

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
from ..pure.samples import check_count, split_targets

# As in csrc/step_error/step_loss.h.
STEP_LOSSES = ("average_precision", "step", "step_negatives", "rank_sort", "alrp")


def step_error(
    logits: Tensor,
    targets: Tensor,
    loss: str,
    delta: float,
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
        TypeError, ValueError: an argument is not as described. The kernels for CUDA do not look at
            the values of ``targets`` beforehand: where they are wrong, the result is NaN.
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
    if backend(logits.device) == "reference":
        positive, _ = split_targets(targets, loss == "rank_sort")
        if localization is not None:
            check_count("localization", localization, int(positive.sum()))
        return reference(logits, targets, loss, float(delta), localization)
    values = _call(logits, targets, loss, float(delta), localization)[0]
    return values[0], values[1]


class _Ranking(NamedTuple):
    """How each positive u, a row, is ranked by the other samples v, in columns."""

    scores: Tensor  # (P,)
    values: Tensor  # (P,) IoUs for rank_sort, localization losses for alrp
    among_positives: Tensor  # (P, P), H(s_v - s_u)
    over_negatives: Tensor  # (P, N)
    negatives_counted: Tensor  # (P,), those of H > 0
    false_positives: Tensor  # (P,)
    true_positives: Tensor  # (P,)

    @property
    def rank(self) -> Tensor:
        return self.true_positives + self.false_positives

    @property
    def precision(self) -> Tensor:
        return self.true_positives / self.rank

    @property
    def others(self) -> Tensor:
        """H of the other positives."""
        return self.among_positives - torch.diag(self.among_positives.diag())


class _Error(NamedTuple):
    value: Tensor
    share: Tensor  # (P,) of H in the update
    second: Tensor | float = 0.0
    second_gradient: Tensor | float = 0.0  # (P,), of rank_sort's second part
    weights: Tensor | None = None  # (P,), of the localization losses in alrp's second part


def _average_precision(ranking: _Ranking) -> _Error:
    precision, rank = ranking.precision, ranking.rank
    order = ranking.scores.argsort(stable=True)
    interpolated = torch.empty_like(precision)
    interpolated[order] = precision[order].cummax(0).values
    raised = interpolated > precision
    share = torch.where(raised, 1 / rank * (1 - interpolated) / (1 - precision), 1 / rank)
    return _Error(1 - interpolated.mean(), share)


def _step(ranking: _Ranking) -> _Error:
    return _Error((ranking.false_positives / ranking.rank).mean(), 1 / ranking.rank)


def _step_negatives(ranking: _Ranking) -> _Error:
    counted = ranking.negatives_counted.double()
    share = torch.where(counted > 0, 1 / counted.clamp(min=1), 0)
    return _Error((ranking.false_positives * share).mean(), share)


def _rank_sort(ranking: _Ranking) -> _Error:
    iou, among = ranking.values, ranking.among_positives
    at_least = (iou[None] >= iou[:, None]) * among
    missorted = (iou[None] < iou[:, None]) * among
    current = (among * (1 - iou)).sum(1) / among.sum(1)
    target = (at_least * (1 - iou)).sum(1) / at_least.sum(1)
    sorting = current - target
    second = sorting.mean()
    total = missorted.sum(1)
    sorting = torch.where(total > 0, sorting, 0)
    shares = missorted * (sorting / torch.where(total > 0, total, 1))[:, None]
    gradient = (shares.sum(0) - sorting) / len(iou)
    ranking_error = _step(ranking)
    return ranking_error._replace(second=second, second_gradient=gradient)


def _alrp(ranking: _Ranking) -> _Error:
    error, rank, scores = ranking.values, ranking.rank, ranking.scores
    # The error of u is spread over its false positives, of which there have to be some.
    some = ranking.false_positives > 0
    extra = torch.where(some, (ranking.others * error).sum(1), 0)
    spread = torch.where(some, ranking.false_positives, 1)
    share = torch.where(some, (ranking.false_positives + extra) / (rank * spread), 0)
    above = (scores[None] >= scores[:, None]).double()
    second = ((above * error).sum(1) / rank).mean()
    weights = (above / rank[:, None]).sum(0) / len(scores)
    return _Error(1 - ranking.precision.mean(), share, second, weights=weights)


_ERRORS = {
    "average_precision": _average_precision,
    "step": _step,
    "step_negatives": _step_negatives,
    "rank_sort": _rank_sort,
    "alrp": _alrp,
}


def _rank_positives(s: Tensor, n: Tensor, values: Tensor, loss: str, delta: float):
    among_positives = ((s[None] - s[:, None]) / (2 * delta) + 0.5).clamp(0, 1)
    over_negatives = ((n[None] - s[:, None]) / (2 * delta) + 0.5).clamp(0, 1)
    # Differences: beside a large logit s_u - delta would be rounded.
    counted = (n[None] - s[:, None] > -delta).sum(1)
    ranking = _Ranking(
        s, values, among_positives, over_negatives, counted, over_negatives.sum(1), s
    )
    # A positive counts itself: by 1, in RS loss by H(0) = 1/2.
    itself = 0.5 if loss == "rank_sort" else 1
    return ranking._replace(true_positives=ranking.others.sum(1) + itself)


def reference(
    logits: Tensor,
    targets: Tensor,
    loss: str,
    delta: float,
    localization: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The twin of :func:`corrdet.ops.step_error`, pair by pair."""
    dtype = compute_dtype(logits)
    positives, negatives, s, n = select_samples(logits, targets)
    count = len(positives)
    if count == 0:
        zero = torch.zeros_like(logits, dtype=torch.float64)
        value = attach_gradient(zero.sum(), logits, zero).to(dtype)
        if localization is None:
            return value, value.detach()
        return value, (value.detach() + localization.sum() * 0).to(dtype)
    values = targets[positives] if localization is None else localization.detach()
    ranking = _rank_positives(s, n, values.double(), loss, delta)
    error = _ERRORS[loss](ranking)
    nan = torch.tensor(math.nan if is_undefined(s, n) else 0.0, dtype=torch.float64)

    on_positives = -error.share * ranking.false_positives / count
    on_negatives = (error.share[:, None] * ranking.over_negatives).sum(0) / count
    gradient = spread_gradient(logits, positives, on_positives, negatives, on_negatives)
    value = attach_gradient(error.value + nan, logits, gradient + nan).to(dtype)
    second = torch.as_tensor(error.second, dtype=torch.float64, device=logits.device) + nan
    if error.weights is not None and localization is not None:
        return value, attach_gradient(second, localization, error.weights + nan).to(dtype)
    on_positives = torch.zeros_like(s) + error.second_gradient
    gradient = spread_gradient(logits, positives, on_positives, negatives, torch.zeros_like(n))
    return value, attach_gradient(second, logits, gradient + nan).to(dtype)


def example(size: int, seed: int = 0) -> tuple:
    """Arguments of a call with `size` samples."""
    logits, labels, ious = example_samples(size, seed)
    return logits.requires_grad_(), labels, "alrp", 1.0, ious.requires_grad_()


@register_fake("step_error")
def _(logits, targets, loss, delta, localization):
    dtype = compute_dtype(logits)
    rows = 2 if loss == "rank_sort" else 1
    positives = 0 if localization is None else localization.shape[0]
    return (
        logits.new_empty(2, dtype=dtype),
        logits.new_empty((rows, logits.shape[0]), dtype=dtype),
        logits.new_empty(positives, dtype=dtype),
    )


def _setup_step(ctx, inputs, output):
    logits, *_, localization = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.has_localization = localization is not None
    return (*output[1:], logits, *([] if localization is None else [localization]))


def _step_backward(ctx, grads, *_):
    gradients, localization_gradient, logits, *localization = ctx.saved_tensors
    on_logits = on_localization = None
    if ctx.needs_input_grad[0]:
        on_logits = weighted_rows(grads, gradients, logits.dtype, logits)
    if ctx.has_localization and ctx.needs_input_grad[4]:
        rows, values = localization_gradient[None], localization[0]
        on_localization = weighted_rows(grads[1:], rows, values.dtype, values)
    return on_logits, None, None, None, on_localization


_call = differentiable("step_error", _setup_step, _step_backward, refuse_forward_mode)
