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
