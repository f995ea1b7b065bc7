"""Rank & Sort Loss among the positives: sums over those of lower IoU.

Sums over pairs that one IoU divides and H of the logits weights. IoUs are numbered, and each pair
is met once: at the highest bit in which its numbers differ. There all positives of one number above
that bit are a block, sorted by their logits.
"""

import torch
from torch import Tensor

from .step_sums import StepSums
from .sums import prefix_sums, searchsorted


def blocks_by_bit(group: Tensor):
    """For each bit of numbers (P,) of positives in order of logits, how they are in blocks.

    Yields:
        block (P,): the number above the bit, with it; order (P,): by block, then as they came.
    """
    for bit in range(int(group.max()).bit_length()):
        block = group >> bit
        yield block, block.sort(stable=True).indices


def sums_over_lower(q: Tensor, group: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Sums of weights[v] * H(s_v - s_u) over the v of a lower group than u's.

    Args:
        q: (P,) negated logits, ascending.
        group: (P,) int64, not negative.
        weights: (C, P)
        delta: half of the width of H.

    Returns:
        (C, P)
    """
    count = len(q)
    full = searchsorted(q, q - delta)
    counted = torch.maximum(full, searchsorted(q, q + delta))
    near = q - q[0]
    sums = torch.zeros_like(weights)
    for block, order in blocks_by_bit(group):
        keys = block[order] * (count + 1) + order
        lower = (block - 1) * (count + 1)
        begin, first, last = (
            searchsorted(keys, lower + limit) for limit in (torch.zeros_like(full), full, counted)
        )
        number = prefix_sums(weights[:, order])
        moment = prefix_sums((weights * near)[:, order])
        inside = number[:, last] - number[:, first]
        rising = (inside * near - (moment[:, last] - moment[:, first])) / (2 * delta)
        found = number[:, first] - number[:, begin] + 0.5 * inside + rising
        sums += torch.where(block % 2 == 1, found.clamp(min=0), 0)
    return sums


def sorting_errors(q: Tensor, ious: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """The sorting error of each positive, and the gradient of their sum by the identity update.

    The current error of u is the mean of 1 - I_v over all v, weighted by H(s_v - s_u); its target
    the same over those of no lower IoU; the sorting error their difference.

    Args:
        q: (P,) negated logits, ascending.
        ious: (P,)
        delta: half of the width of H.

    Returns:
        (P,), (P,)
    """
    group = torch.unique(ious, return_inverse=True)[1]
    losses = 1 - ious
    weights = torch.stack([torch.ones_like(losses), losses])
    missorted, missorted_loss = sums_over_lower(q, group, weights, delta)
    # Less than what rounding can leave of windows that are nearly empty.
    span = 1 + (q[-1] - q[0]) / delta
    some = missorted > torch.finfo(q.dtype).eps * len(q) * span
    missorted, missorted_loss = (torch.where(some, each, 0) for each in (missorted, missorted_loss))
    at_least = (StepSums(q, delta).over(q) - missorted).clamp(min=0.5)  # itself by H(0)
    at_least_loss = StepSums(q, delta, losses).over(q) - missorted_loss
    errors = missorted_loss * at_least - at_least_loss * missorted
    errors = errors / (at_least * (at_least + missorted))

    # u moves down by its error, and the v of lower IoU up, in proportion to H(s_v - s_u). Seen from
    # v, with all turned around, that is a sum over a lower group again.
    shares = torch.where(some, errors / torch.where(some, missorted, 1), 0)
    turned = sums_over_lower(-q.flip(0), group.max() - group.flip(0), shares.flip(0)[None], delta)
    return errors, turned[0].flip(0) - torch.where(some, errors, 0)
