"""Matchability-Aware Loss of DEIM (Huang et al. 2025, "DEIM: DETR with Improved Matching for Fast
Convergence", https://arxiv.org/abs/2412.04234)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import NOT_NEGATIVE, checked

from ._checks import check_same_shape, power, widened
from .cross_entropy import class_targets, sum_over_classes
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES


@checked
def mal_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    gamma: Annotated[
        float, NOT_NEGATIVE, "power of the IoU in a positive's target, and of a negative's score"
    ] = 1.5,
    alpha: Annotated[
        float | None, NOT_NEGATIVE.or_none(), "weight of the negatives; None: 1"
    ] = None,
) -> Tensor:
    """Matchability-Aware Loss of each element, without reduction.

    A positive has the cross entropy with ``I^gamma``, of weight 1, where Varifocal Loss has ``I``
    of weight ``I``, which leaves badly placed boxes almost without gradient: here it is
    ``p - I^gamma``. A negative has ``-p^gamma log(1 - p)``; its weight is a constant, as in the
    authors' code, so that its gradient is ``p^(gamma + 1)``.

    Args:
        logits: (...) raw scores.
        labels: (...) 1 for positives at their class, 0 elsewhere, same shape as ``logits``.
        ious: (...) IoU of each positive's box with its ground truth, in [0, 1]; anything elsewhere.
        gamma: power of the IoU in a positive's target, and of a negative's score.
        alpha: weight of the negatives; None: 1, as its authors train.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    check_same_shape(logits=logits, labels=labels, ious=ious)
    logits = widened(logits)
    is_positive = labels > 0
    with torch.no_grad():
        # Of negatives the IoU may be anything, a NaN as well.
        targets = torch.where(is_positive, ious.to(logits.dtype), 0.0)
        targets = torch.where(is_positive, power(targets, gamma), 0.0)
        negative_weights = power(logits.sigmoid(), gamma) * (1.0 if alpha is None else alpha)
        weights = torch.where(is_positive, 1.0, negative_weights)
    return weights * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@CLASSIFICATION_LOSSES.register(
    "mal",
    options_from=(mal_loss,),
    activations=("sigmoid",),
    definition="cross entropy with `I^gamma` for positives, `-p^gamma log(1 - p)` for negatives",
    use="DETRs, D-FINE: as `varifocal`, but badly placed boxes train too",
    source="Huang et al. 2025, DEIM",
)
def _mal(matched: MatchedPredictions, *, gamma, alpha) -> Tensor:
    labels = class_targets(matched)
    ious = class_targets(matched, matched.ious.detach())
    return sum_over_classes(matched, mal_loss(matched.logits, labels, ious, gamma, alpha))
