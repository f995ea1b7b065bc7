"""The operators in plain PyTorch, obvious and slow: the specification of the kernels.

Same functions, arguments, errors and results as in :mod:`corrdet.ops`, for any device of PyTorch.
Gradients come from autograd. This module does not need the compiled extension."""

import math

import torch
from torch import Tensor


def _iou(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """IoUs of boxes (..., 4) whose leading dimensions broadcast."""
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    # An inverted side has length 0, at its start.
    x2, y2 = torch.where(x2 < x1, x1, x2), torch.where(y2 < y1, y1, y2)
    u2, v2 = torch.where(u2 < u1, u1, u2), torch.where(v2 < v1, v1, v2)

    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    intersection = torch.where(width > 0, width, 0) * torch.where(height > 0, height, 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    iou = _divide(intersection, union)
    if kind == "iou":
        return iou

    hull_width = torch.maximum(x2, u2) - torch.minimum(x1, u1)
    hull_height = torch.maximum(y2, v2) - torch.minimum(y1, v1)
    if kind == "giou":
        hull = hull_width * hull_height
        return iou - _divide(hull - union, hull)

    dx = ((x1 - u1) + (x2 - u2)) / 2
    dy = ((y1 - v1) + (y2 - v2)) / 2
    diou = iou - _divide(dx**2 + dy**2, hull_width**2 + hull_height**2)
    if kind == "diou":
        return diou

    turn = torch.atan2(x2 - x1, y2 - y1) - torch.atan2(u2 - u1, v2 - v1)
    v = 4 / math.pi**2 * turn**2
    alpha = _divide(v, 1 - iou + v).detach()
    return diou - alpha * v


def _divide(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Quotient, 0 without gradient where the divisor is 0."""
    is_zero = divisor == 0
    return torch.where(is_zero, 0, dividend / torch.where(is_zero, 1, divisor))


def _compute_type(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def pairwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """See :func:`corrdet.ops.pairwise_iou`."""
    dtype = _compute_type(boxes1)
    return _iou(boxes1.to(dtype)[:, None], boxes2.to(dtype)[None], kind).to(boxes1.dtype)


def elementwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """See :func:`corrdet.ops.elementwise_iou`."""
    dtype = _compute_type(boxes1)
    return _iou(boxes1.to(dtype), boxes2.to(dtype), kind).to(boxes1.dtype)


def _soft_rank_row(values: Tensor, strength: float) -> Tensor:
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


def soft_rank(values: Tensor, strength: float = 1.0) -> Tensor:
    """See :func:`corrdet.ops.soft_rank`."""
    if values.numel() == 0:
        return values.clone()
    rows = values.reshape(-1, values.shape[-1]).double()
    ranks = torch.stack([_soft_rank_row(row, strength) for row in rows])
    finite = rows.isfinite().all(-1, keepdim=True)
    return torch.where(finite, ranks, math.nan).reshape(values.shape).to(values.dtype)


def _attach(value: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """`value` as a tensor whose gradient with respect to `logits` is `gradient`."""
    counted = gradient != 0  # a logit that is ignored may be anything
    surrogate = (torch.where(counted, logits.to(gradient.dtype), 0) * gradient.detach()).sum()
    return value.detach() + (surrogate - surrogate.detach())


def _samples(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of the positives and of the negatives, and their logits in float64."""
    positives, negatives = (targets > 0).nonzero()[:, 0], (targets == 0).nonzero()[:, 0]
    values = logits.detach().double()
    return positives, negatives, values[positives], values[negatives]


def _spread(logits: Tensor, positives: Tensor, on_positives: Tensor, negatives: Tensor,
            on_negatives: Tensor) -> Tensor:  # fmt: skip
    """Gradients of positives and negatives at their positions among the samples, in float64."""
    gradient = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
    return gradient.index_put((positives,), on_positives).index_put((negatives,), on_negatives)


def _result_type(logits: Tensor) -> torch.dtype:
    return _compute_type(logits)


def _undefined(*logits: Tensor) -> bool:
    return not all(bool(values.isfinite().all()) for values in logits)


def step_error(
    logits: Tensor,
    targets: Tensor,
    loss: str,
    delta: float = 1.0,
    localization: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`corrdet.ops.step_error`."""
    positives, negatives, s, n = _samples(logits, targets)
    count = len(positives)
    if count == 0:
        zero = torch.zeros_like(logits, dtype=torch.float64)
        value = _attach(zero.sum(), logits, zero).to(_result_type(logits))
        if localization is None:
            return value, value.detach()
        return value, (value.detach() + localization.sum() * 0).to(value.dtype)
    # Row u is a positive, column v another sample.
    among_positives = ((s[None] - s[:, None]) / (2 * delta) + 0.5).clamp(0, 1)
    over_negatives = ((n[None] - s[:, None]) / (2 * delta) + 0.5).clamp(0, 1)
    false_positives = over_negatives.sum(1)
    others = among_positives - torch.diag(among_positives.diag())
    # A positive counts itself: by 1, in RS loss by H(0) = 1/2.
    true_positives = others.sum(1) + (0.5 if loss == "rank_sort" else 1)
    rank = true_positives + false_positives
    precision = true_positives / rank

    second = torch.zeros_like(precision.sum())
    second_on_positives = torch.zeros_like(s)
    share = 1 / rank  # of each false positive in the error of u
    extra = torch.zeros_like(s)  # error of u beside its false positives
    if loss == "average_precision":
        order = s.argsort(stable=True)
        interpolated = torch.empty_like(precision)
        interpolated[order] = precision[order].cummax(0).values
        raised = interpolated > precision
        share = torch.where(raised, share * (1 - interpolated) / (1 - precision), share)
        value = 1 - interpolated.mean()
    elif loss == "step":
        value = (false_positives / rank).mean()
    elif loss == "step_negatives":
        valid = (n[None] > (s - delta)[:, None]).sum(1).double()
        share = torch.where(valid > 0, 1 / valid.clamp(min=1), 0)
        value = (false_positives * share).mean()
    elif loss == "rank_sort":
        value = (false_positives / rank).mean()
        iou = targets[positives].double()
        at_least = (iou[None] >= iou[:, None]) * among_positives
        missorted = (iou[None] < iou[:, None]) * among_positives
        current = (among_positives * (1 - iou)).sum(1) / among_positives.sum(1)
        target = (at_least * (1 - iou)).sum(1) / at_least.sum(1)
        sorting = current - target
        second = sorting.mean()
        total = missorted.sum(1)
        sorting = torch.where(total > 0, sorting, 0)
        shares = missorted * (sorting / torch.where(total > 0, total, 1))[:, None]
        second_on_positives = (shares.sum(0) - sorting) / count
    elif loss == "alrp":
        value = 1 - precision.mean()
        error = localization.detach().double()
        extra = (others * error).sum(1)
        # The error of u is spread over its false positives, of which there have to be some.
        some = false_positives > 0
        extra = torch.where(some, extra, 0)
        spread = torch.where(some, false_positives, 1)
        share = torch.where(some, (false_positives + extra) / (rank * spread), 0)
        above = (s[None] >= s[:, None]).double()
        second = ((above * error).sum(1) / rank).mean()
    else:
        raise ValueError(loss)
    on_positives = -share * false_positives / count
    on_negatives = (share[:, None] * over_negatives).sum(0) / count
    gradient = _spread(logits, positives, on_positives, negatives, on_negatives)
    second_gradient = _spread(logits, positives, second_on_positives, negatives, on_negatives * 0)
    if _undefined(s, n):
        value, second, gradient, second_gradient = (
            torch.full_like(tensor, math.nan)
            for tensor in (value, second, gradient, second_gradient)
        )
    dtype = _result_type(logits)
    value = _attach(value, logits, gradient).to(dtype)
    if loss != "alrp":
        return value, _attach(second, logits, second_gradient).to(dtype)
    weight = (above / rank[:, None]).sum(0) / count
    weight = torch.full_like(weight, math.nan) if _undefined(s, n) else weight
    return value, _attach(second, localization, weight).to(dtype)


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
    """See :func:`corrdet.ops.smooth_error`."""
    positives, negatives, s, n = _samples(logits, targets)
    count = len(positives)
    if count == 0:
        zero = torch.zeros_like(logits, dtype=torch.float64)
        return _attach(zero.sum(), logits, zero).to(_result_type(logits))
    # Row u is a positive, column v another sample.
    counted_positives = s[None] > (s - delta)[:, None]
    counted_negatives = n[None] > (s - delta)[:, None]
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

        def pair_loss(difference):
            return torch.logaddexp(lam * difference, torch.zeros_like(difference)) / lam

        total = (counted_negatives * pair_loss(n[None] - s[:, None])).sum(1)
        total = total + (false_positives * pair_loss(s[None] - s[:, None])).sum(1)
    else:
        total = error
    value = (coefficient * total).sum()
    on_positives = (coefficient[:, None] * false_positives * among_positives).sum(0)
    on_positives = on_positives - coefficient * error
    on_negatives = (coefficient[:, None] * over_negatives).sum(0)
    gradient = _spread(logits, positives, on_positives, negatives, on_negatives)
    if _undefined(s, n):
        value, gradient = value * math.nan, gradient * math.nan
    return _attach(value, logits, gradient).to(_result_type(logits))
