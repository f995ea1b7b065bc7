"""Soft ranks: isotonic regression in tensors, by merging.

Two neighbouring blocks whose regressions are known have one in common in which at most one new pool
forms, around their border: of all left values above a level and all right ones below it, which is
their mean. All pairs of blocks of one size are merged at once, and the levels found by search.
"""

import torch
from torch import Tensor

from .._operators import operator
from .sums import prefix_sums, sum_dtype

# Candidates of a search that are tried at once.
WAYS = 16


def count_pooled(own: Tensor, other: Tensor) -> Tensor:
    """How many of `own` are above the level at which they and `other` pool.

    Args:
        own: (B, h) descending, from the border outwards.
        other: (B, h) ascending, from the border outwards.

    Returns:
        (B,)
    """
    rows, length = own.shape
    own_sums, other_sums = prefix_sums(own), prefix_sums(other)

    def is_pooled(index: Tensor) -> Tensor:
        """Whether own values (B, k) are above the level: what is above them is less in sum than
        what is below."""
        level = own.gather(1, index)
        below = torch.searchsorted(other, level)
        above = own_sums.gather(1, index) - index * level
        return above < below * level - other_sums.gather(1, below)

    pooled = torch.zeros((rows, 1), dtype=torch.int64, device=own.device)
    step = 1
    while step * WAYS < length:
        step *= WAYS
    tried = torch.arange(1, WAYS + 1, device=own.device)
    while step:
        index = pooled + step * tried - 1
        found = is_pooled(index.clamp(max=length - 1)) & (index < length)
        pooled += step * found.sum(1, keepdim=True)
        step //= WAYS
    # All that are equal pool alike, however their sums are rounded.
    last = own.gather(1, (pooled - 1).clamp(min=0))
    all_equal = torch.searchsorted(-own, -last, right=True)
    return torch.where(pooled > 0, all_equal, 0)[:, 0]


def merge_blocks(values: Tensor) -> Tensor:
    """The regression of (B, 2, h), of which each (h,) is one already; (B, 2 * h)."""
    blocks, _, half = values.shape
    border = values[:, 0, -1:]
    left, right = values[:, 0].flip(1) - border, values[:, 1] - border
    # Pooled are left values above the level and, seen from below, right ones.
    own, other = torch.cat([left, -right]), torch.cat([right, -left])
    from_left, from_right = count_pooled(own.contiguous(), other.contiguous()).split(blocks)
    sums = prefix_sums(left).gather(1, from_left[:, None])
    sums = sums + prefix_sums(right).gather(1, from_right[:, None])
    level = border + sums / (from_left + from_right).clamp(min=1)[:, None]
    position = torch.arange(2 * half, device=values.device)
    pooled = (position >= half - from_left[:, None]) & (position < half + from_right[:, None])
    return torch.where(pooled, level, values.flatten(1))


def isotonic_regression(values: Tensor) -> Tensor:
    """The ascending rows closest to (rows, n), n > 0."""
    rows, n = values.shape
    length = 1 << (n - 1).bit_length()
    if length > n:
        # Ascending beyond the largest, so that nothing there is pooled.
        steps = torch.arange(1, length - n + 1, dtype=values.dtype, device=values.device)
        values = torch.cat([values, values.amax(1, keepdim=True) + steps], 1)
    half = 1
    while half < length:
        values = merge_blocks(values.reshape(-1, 2, half)).view(rows, length)
        half *= 2
    return values[:, :n]


def pools_of(ascending: Tensor, strength: float) -> Tensor:
    """For rows (rows, n) in ascending order, where the pool of each position starts."""
    n = ascending.shape[1]
    # In units of ranks. No pool goes across a gap of n of them, so that longer ones are cut.
    gaps = (torch.diff(ascending) / strength).clamp(max=n + 1.0)
    regression = isotonic_regression(prefix_sums(gaps - 1))
    position = torch.arange(n, device=ascending.device)
    is_start = torch.ones_like(regression, dtype=torch.bool)
    is_start[:, 1:] = torch.diff(regression) > 0
    return torch.where(is_start, position, 0).cummax(1).values


def pool_means(values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Means over pools, and where they end, for each position; (rows, n)."""
    rows, n = values.shape
    position = torch.arange(n, device=values.device)
    ends = torch.where(torch.diff(starts, append=starts.new_full((rows, 1), n)) > 0, position, n)
    ends = ends.flip(1).cummin(1).values.flip(1) + 1
    sums = prefix_sums(values)
    return (sums.gather(1, ends) - sums.gather(1, starts)) / (ends - starts), ends


@operator(
    "soft_rank(Tensor values, float strength) -> (Tensor ranks, Tensor permutation, Tensor pools)"
)
def soft_rank(values: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = values.reshape(-1, values.shape[-1]) if values.numel() else values.new_empty(0, 0)
    if rows.numel() == 0:
        indices = torch.zeros_like(values, dtype=torch.int64)
        return torch.zeros_like(values), indices, indices.clone()
    wide = rows.to(sum_dtype(values.device)) + 0.0
    permutation = wide.sort(dim=1, stable=True).indices
    is_finite = wide.isfinite().all(1, keepdim=True)
    ascending = torch.where(is_finite, wide.gather(1, permutation), 0)
    starts = pools_of(ascending, strength)
    # From the least of the pool, beside which nothing large cancels: equal values are at 0.
    distances = ascending - ascending.gather(1, starts)
    mean, ends = pool_means(distances, starts)
    mean = torch.where(distances.gather(1, ends - 1) == 0, 0, mean)
    middle = 0.5 * (starts + ends - 1).to(wide.dtype) + 1
    ranks = torch.where(is_finite, middle + (distances - mean) / strength, torch.nan)
    ranks = torch.empty_like(ranks).scatter_(1, permutation, ranks).to(values.dtype)
    pools = torch.where(is_finite, starts, -1)
    return ranks.view(values.shape), permutation.view(values.shape), pools.view(values.shape)


@operator(
    "soft_rank_backward(Tensor grad, Tensor permutation, Tensor pools, float strength) -> Tensor"
)
def soft_rank_backward(grad: Tensor, permutation: Tensor, pools: Tensor, strength: float) -> Tensor:
    if grad.numel() == 0:
        return torch.zeros_like(grad, memory_format=torch.contiguous_format)
    grads, permutation, starts = (
        each.reshape(-1, grad.shape[-1]) for each in (grad, permutation, pools)
    )
    ascending = grads.gather(1, permutation).to(sum_dtype(grad.device))
    is_finite = starts[:, :1] >= 0
    mean, _ = pool_means(ascending, starts.clamp(min=0))
    result = torch.where(is_finite, (ascending - mean) / strength, torch.nan).to(grad.dtype)
    return torch.empty_like(result).scatter_(1, permutation, result).view(grad.shape)
