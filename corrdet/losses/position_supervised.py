"""Position-supervised loss of Stable-DINO (Liu et al. 2023, "Detection Transformer with Stable
Matching", https://arxiv.org/abs/2304.04742)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import NOT_NEGATIVE, SHARE, checked

from ._checks import check_per_positive, check_same_shape, power, widened
from ._groups import largest_of_group
from .cross_entropy import class_targets, sum_over_classes
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES

# What the authors' code adds to the largest target before it divides.
_EPSILON = 1e-8


@checked
def position_targets(
    ious: Tensor,
    groups: Tensor,
    num_groups: int,
    exponent: Annotated[float, NOT_NEGATIVE, "power of the IoU in a positive's target"] = 2.0,
) -> Tensor:
    """Targets of positives by their position alone: powers of IoUs, of which an image's best is 1.

    Args:
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1].
        groups: (P,) int64 in 0..num_groups-1, the image of each.
        num_groups: how many images there are; some may have no positive.
        exponent: power of the IoU.

    Returns:
        (P,) ``I^exponent`` over the largest of the image, in [0, 1], without gradient, at least
        float32. All 0 in an image whose IoUs are all 0.

    Raises:
        TypeError, ValueError: not floating point, or shapes other than the same (P,).
    """
    check_per_positive(ious=ious)
    targets = power(widened(ious.detach()), exponent)
    return targets / (largest_of_group(targets, groups, num_groups) + _EPSILON)


@checked
def position_supervised_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    alpha: Annotated[float, SHARE, "weight of positives, that of negatives is 1 - alpha"] = 0.25,
    gamma: Annotated[
        float, NOT_NEGATIVE, "how strongly samples near their target are weighted down"
    ] = 2.0,
) -> Tensor:
    """Position-supervised loss of each element, without reduction.

    A positive has ``alpha |t - p|^gamma`` times the cross entropy with its target t, a negative
    ``-(1 - alpha) p^gamma log(1 - p)``; gradient flows through both weights. Its authors have t of
    :func:`position_targets`, RF-DETR the IoU as it is, which is an exponent of 1 without the
    division by the best of the image.

    Args:
        logits: (...) raw scores.
        labels: (...) 1 for positives at their class, 0 elsewhere, same shape as ``logits``.
        targets: (...) t of the positives, in [0, 1]; anything elsewhere.
        alpha: weight of the positives, negatives get 1 - alpha.
        gamma: how strongly elements near their target are weighted down.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    check_same_shape(logits=logits, labels=labels, targets=targets)
    logits = widened(logits)
    is_positive = labels > 0
    # Of negatives the target may be anything, a NaN as well.
    targets = torch.where(is_positive, targets.detach().to(logits.dtype), 0.0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = torch.where(is_positive, alpha, 1 - alpha).to(logits.dtype)
    return weights * power((targets - logits.sigmoid()).abs(), gamma) * cross_entropy


@CLASSIFICATION_LOSSES.register(
    "position_supervised",
    options_from=(position_supervised_loss, position_targets),
    activations=("sigmoid",),
    definition="`alpha abs(t - p)^gamma` x cross entropy with `t = I^exponent` over the largest of "
    "the image for positives, `-(1 - alpha) p^gamma log(1 - p)` for negatives",
    use="DETRs: the box alone says what a score should be; the authors weight it by 6",
    source="Liu et al. 2023, Stable-DINO",
)
def _position_supervised(matched: MatchedPredictions, *, alpha, gamma, exponent) -> Tensor:
    targets = position_targets(matched.ious, *matched.groups("image"), exponent)
    losses = position_supervised_loss(
        matched.logits, class_targets(matched), class_targets(matched, targets), alpha, gamma
    )
    return sum_over_classes(matched, losses)
