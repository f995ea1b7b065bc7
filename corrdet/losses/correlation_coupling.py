"""Correlation Loss as a coupling: of a batch, or of each of its images or levels."""

import logging
import math
from typing import Annotated

import torch
from torch import Tensor

from corrdet.ops import soft_rank
from corrdet.options import checked, one_of

from .correlation import (
    Coefficient,
    Gradient,
    SoftBoth,
    Strength,
    Unbiased,
    average_ranks,
    checked_pair,
    correlation_loss,
    trained_first,
)
from .global_batch import GLOBAL_BATCH_OPTIONS, check_over, gather_from_processes, remember
from .matched_predictions import MatchedPredictions
from .registry import COUPLINGS

Over = Annotated[
    str,
    one_of(("batch", "image", "level")),
    "what a coefficient is of: the positives of the `batch`, or those of each `image` or `level`",
]
Reduction = Annotated[
    str, one_of(("mean", "sum")), "of the losses of images or levels; no matter for `batch`"
]


@checked
def grouped_correlation_loss(
    scores: Tensor,
    ious: Tensor,
    groups: Tensor,
    num_groups: int,
    coefficient: Coefficient = "concordance",
    strength: Strength = None,
    gradient: Gradient = "scores",
    unbiased: Unbiased = False,
    soft_both: SoftBoth = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Correlation Loss of each group of positives: their mean, or their sum.

    All groups are computed together, in float64, and nothing waits for the device.

    Args:
        scores, ious, coefficient, strength, gradient, unbiased, soft_both: as of
            :func:`corrdet.losses.correlation_loss`; a default strength is that of the group.
        groups: (P,) int64 in 0..num_groups-1, that each positive is of.
        num_groups: how many there are; some may be empty.
        reduction: "mean" over the groups of two positives or more, or "sum".

    Returns:
        scalar, in the dtype of the scores; groups of fewer than two positives and those whose
        scores or IoUs are all the same add 0; NaN if any value is.

    Raises:
        TypeError, ValueError: as :func:`corrdet.losses.correlation_loss`.
    """
    scores, ious = checked_pair(scores, ious)
    if groups.shape != scores.shape:
        raise ValueError(f"groups must have shape {tuple(scores.shape)}, got {tuple(groups.shape)}")
    x, y = trained_first(scores, ious, gradient)
    attached = (x * 0 + y * 0).sum()
    if not len(scores):
        return attached
    x, y = x.double(), y.double()
    members = groups == torch.arange(num_groups, device=groups.device)[:, None]  # (G, P)
    counts = members.sum(dim=1)
    undefined = (counts < 2) | _is_constant(x, members) | _is_constant(y, members)
    if coefficient == "spearman":
        x = _soft_ranks(x, members, groups, strength)
        is_soft = soft_both or gradient == "both"
        y = _soft_ranks(y, members, groups, strength) if is_soft else _ranks(y, members, groups)
    # Where squares underflow, or the strength is so large that all ranks are the same, rho is 0.
    is_zero = undefined | _is_constant(x, members) | _is_constant(y, members)
    x, mean_x = _centered(x, members)
    y, mean_y = _centered(y, members)
    if coefficient != "concordance":
        x, y = _unit_scale(x, is_zero), _unit_scale(y, is_zero)
    products, squares_x, squares_y = (x * y).sum(1), (x * x).sum(1), (y * y).sum(1)
    if coefficient == "concordance":
        divisor = (counts - 1 if unbiased else counts).clamp(min=1)
        numerator = 2 * products / divisor
        denominator = (squares_x + squares_y) / divisor + (mean_x - mean_y).square()
        is_zero = is_zero | (denominator == 0)
    else:
        numerator = products
        denominator = torch.where(is_zero, 1.0, squares_x * squares_y).sqrt()
    rho = torch.where(is_zero, 0.0, numerator / torch.where(is_zero, 1.0, denominator))
    total = torch.where(undefined, 0.0, 1 - rho).sum()
    if reduction == "mean":
        total = total / (counts >= 2).sum().clamp(min=1)
    return total.to(scores.dtype) + attached


@COUPLINGS.register(
    "correlation",
    options_from=(correlation_loss, grouped_correlation_loss, GLOBAL_BATCH_OPTIONS),
    check=check_over,
    state_with="memory",
    # lambda_corr; what won in the thesis for RetinaNet is Spearman with 0.1.
    weight=0.1,
    definition="`1 - rho(I, p)` over the positives of the batch, or of each image or level",
    reaches="scores; with `GRADIENT` `ious` or `both`, boxes",
    use="the scores of a batch are to order or fit its IoUs",
    source='thesis "Correlation Loss"',
)
def _correlation(
    matched: MatchedPredictions,
    *,
    state,
    coefficient,
    strength,
    gradient,
    unbiased,
    soft_both,
    over: Over = "batch",
    reduction,
    global_batch,
    memory,
) -> Tensor:
    if over == "batch":
        scores, ious, _ = scores_and_ious(matched, None, global_batch, memory, state, gradient)
        return correlation_loss(scores, ious, coefficient, strength, gradient, unbiased, soft_both)
    own_groups, num_groups = matched.groups(over)
    keeps_number = memory and matched.num_levels is not None
    if keeps_number and "groups" in state and len(state.get("levels", ())) != num_groups:
        logging.getLogger(__name__).warning(
            "what MEMORY has kept is not of the %d feature levels of this model: it begins anew",
            num_groups,
        )
        state.clear()
    scores, ious, groups = scores_and_ious(
        matched, own_groups, global_batch, memory, state, gradient
    )
    if keeps_number and "levels" not in state:
        # Their number is its length, which is known without waiting for a device.
        state["levels"] = torch.zeros(num_groups)
    if matched.num_levels is None and len(groups):  # it was counted in this batch alone
        num_groups = max(num_groups, int(groups.max()) + 1)
    return grouped_correlation_loss(
        scores,
        ious,
        groups,
        num_groups,
        coefficient,
        strength,
        gradient,
        unbiased,
        soft_both,
        reduction,
    )


def scores_and_ious(
    matched: MatchedPredictions,
    groups: Tensor | None,
    global_batch: bool,
    memory: int,
    state: dict,
    gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and IoUs of the positives that a correlation is taken of, and their groups.

    Args:
        matched: the batch of this process.
        groups: (P,) int64 of its positives; None for one.
        global_batch: add the positives of the other processes.
        memory: add those of this many batches before, as constants.
        state: where they are kept.
        gradient: which of them carry it: "scores", "ious" or "both".

    Returns:
        (n,) scores, (n,) IoUs, and (n,) groups, without meaning where there is one.
    """
    # Detached before they are gathered: a branch that is not to be trained gets no gradient at all,
    # rather than zeros.
    scores = matched.scores.detach() if gradient == "ious" else matched.scores
    ious = matched.ious.detach() if gradient == "scores" else matched.ious
    ious = ious.to(scores.dtype)
    has_groups = groups is not None
    groups = matched.image_ids if groups is None else groups
    if global_batch:
        scores, ious = gather_from_processes(torch.stack([scores, ious], dim=1)).unbind(dim=1)
        groups = gather_from_processes(groups) if has_groups else groups
    if memory:
        if has_groups != ("groups" in state):
            state.clear()  # of a training with or without groups
        scores_before = remember(state, "scores", scores, memory)
        ious_before = remember(state, "ious", ious, memory)
        scores, ious = torch.cat([scores, scores_before]), torch.cat([ious, ious_before])
        if has_groups:
            groups = torch.cat([groups, remember(state, "groups", groups, memory)])
    return scores, ious, groups


# ---- Of the members (G, P) of groups.


def _is_constant(x: Tensor, members: Tensor) -> Tensor:
    """(G,) whether all values of a group are the same; False if any is NaN."""
    x = x.detach()
    lowest = torch.where(members, x, math.inf).amin(dim=1)
    return lowest == torch.where(members, x, -math.inf).amax(dim=1)


def _centered(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """(G, P) values minus the mean of their group, 0 where they are not in it; and (G,) means."""
    means = torch.where(members, x, 0.0).sum(dim=1) / members.sum(dim=1).clamp(min=1)
    return torch.where(members, x - means[:, None], 0.0), means


def _unit_scale(centered: Tensor, is_zero: Tensor) -> Tensor:
    """(G, P) over the largest of the group, so that no square can underflow."""
    largest = centered.detach().abs().amax(dim=1)
    return centered / torch.where(is_zero, 1.0, largest)[:, None]


def _ranks_before(members: Tensor) -> Tensor:
    """(G,) how many values the groups before have."""
    counts = members.sum(dim=1)
    return counts.cumsum(0) - counts


def _ranks(x: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    """(P,) exact ranks within the groups, ties sharing their average, without gradient."""
    # Ranks of all keep order and ties; further apart by groups they are the groups' one by one.
    ranks = average_ranks(average_ranks(x) + groups * (len(x) + 1))
    return ranks - _ranks_before(members)[groups]


def _soft_ranks(x: Tensor, members: Tensor, groups: Tensor, strength: float | None) -> Tensor:
    """(P,) soft ranks within the groups."""
    with torch.no_grad():
        centered, means = _centered(x, members)
        if strength is None:
            # As that of a whole batch: see spearman_correlation.
            is_constant = _is_constant(x, members) | ~members.any(dim=1)
            largest = torch.where(is_constant, 1.0, centered.abs().amax(dim=1))
            counts = members.sum(dim=1).clamp(min=1)
            spread = ((centered / largest[:, None]).square().sum(dim=1) / counts).sqrt()
            scales = math.sqrt(3) * spread * largest / counts
            # Groups that are constant have no strength, and no loss.
            scales = torch.where(is_constant, 1.0, scales)
        else:
            scales = torch.full_like(x[:1], strength).expand(len(members))
        scaled = (x - means[groups]) / scales[groups]
        lowest = torch.where(members, scaled, math.inf).amin(dim=1)
        highest = torch.where(members, scaled, -math.inf).amax(dim=1)
        # Groups so far apart that no pool is of two: further than there are ranks.
        widths = torch.where(members.any(dim=1), highest - lowest, 0.0) + len(x) + 1
        shifts = widths.cumsum(0) - widths - torch.where(members.any(dim=1), lowest, 0.0)
    return (
        soft_rank((x - means[groups]) / scales[groups] + shifts[groups])
        - _ranks_before(members)[groups]
    )
