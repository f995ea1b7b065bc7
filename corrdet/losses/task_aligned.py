"""Task-aligned loss of TOOD (Feng et al. 2021, "TOOD: Task-aligned One-stage Object Detection",
https://arxiv.org/abs/2108.07755)."""

from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import BOOL, NOT_NEGATIVE, checked

from ._checks import check_per_positive, power, widened
from ._groups import largest_of_group, numbered
from .cross_entropy import class_targets, sum_over_classes
from .focal import quality_focal_loss
from .global_batch import mean_over_processes
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES

# What the authors' code adds to the largest alignment of a ground truth before it divides.
_EPSILON = 1e-7
# A smaller sum of targets is not divided by.
_LEAST_SUM = 1e-12


@checked
def task_alignment(
    scores: Tensor,
    ious: Tensor,
    groups: Tensor,
    num_groups: int,
    alpha: Annotated[float, NOT_NEGATIVE, "power of the score in the alignment"] = 1.0,
    beta: Annotated[float, NOT_NEGATIVE, "power of the IoU in the alignment"] = 6.0,
) -> Tensor:
    """How well score and box of each positive go together, the target of its score.

    ``t = p^alpha I^beta``, scaled so that the largest of a ground truth is the largest IoU of its
    positives.

    Args:
        scores: (P,) p, the score of each positive's ground-truth class, in [0, 1].
        ious: (P,) I, the IoU of each positive's predicted box with its ground truth, in [0, 1].
        groups: (P,) int64 in 0..num_groups-1, the ground truth of each.
        num_groups: how many ground truths there are; some may have no positive.
        alpha: power of the score.
        beta: power of the IoU.

    Returns:
        (P,) targets in [0, 1], without gradient, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes other than the same (P,).
    """
    check_per_positive(scores=scores, ious=ious)
    scores, ious = widened(scores.detach()), widened(ious.detach())
    alignment = power(scores, alpha) * power(ious, beta)
    best = largest_of_group(alignment, groups, num_groups)
    return alignment / (best + _EPSILON) * largest_of_group(ious, groups, num_groups)


@checked
def task_aligned_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: Annotated[
        float, NOT_NEGATIVE, "how strongly samples near their target are weighted down"
    ] = 2.0,
) -> Tensor:
    """Task-aligned classification loss of each element, without reduction.

    ``|t - p|^gamma`` times the cross entropy with t: the form of
    :func:`corrdet.losses.quality_focal_loss`, of other targets. Its sum is divided by the sum of
    the targets.

    Args:
        logits: (...) raw scores.
        targets: (...) t: of positives, at their class, by :func:`task_alignment`; 0 elsewhere.
        gamma: how strongly elements near their target are weighted down.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    return quality_focal_loss(logits, targets, gamma)


@CLASSIFICATION_LOSSES.register(
    "task_aligned",
    options_from=(task_aligned_loss, task_alignment),
    activations=("sigmoid",),
    per_sample=False,
    weights_positives=True,
    definition="`abs(t - p)^gamma` x cross entropy, `t = p^alpha I^beta` scaled to the best IoU of "
    "the ground truth; this and the localization loss, weighted by `t`, over the sum of `t`",
    use="score and box of the same positives are to be the best; after some epochs of another",
    source="Feng et al. 2021, TOOD",
)
def _task_aligned(
    matched: MatchedPredictions,
    *,
    localization,
    gamma,
    alpha,
    beta,
    weight_localization: Annotated[
        bool, BOOL, "weight the localization loss of each positive by its target, too"
    ] = True,
) -> tuple[Tensor, Tensor]:
    # Positives of one image, class and box are those of one ground truth.
    keys = torch.stack([matched.image_ids, matched.classes], dim=1).to(matched.gt_boxes.dtype)
    groups = numbered(torch.cat([keys, matched.gt_boxes], dim=1))
    targets = task_alignment(matched.scores, matched.ious, *groups, alpha, beta)
    losses = task_aligned_loss(matched.logits, class_targets(matched, targets), gamma)
    total = mean_over_processes(targets.sum())
    total = torch.where(total < _LEAST_SUM, 1.0, total)
    if weight_localization:
        localization = (localization * targets).sum() / total
    return sum_over_classes(matched, losses).sum() / total, localization
