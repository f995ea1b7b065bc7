"""IoU-aware binary cross entropy of Align-DETR (Cai et al. 2023, "Align-DETR: Enhancing End-to-end
Object Detection with Aligned Loss", https://arxiv.org/abs/2304.07527)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import NOT_NEGATIVE, SHARE, checked

from ._checks import check_same_shape, power, widened
from .cross_entropy import class_targets, sum_over_classes
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES

# The least target of a positive, in its authors' code.
_LEAST = 0.01


@checked
def ia_bce_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    alpha: Annotated[
        float, SHARE, "share of the score in a positive's target `p^alpha I^(1 - alpha)`"
    ] = 0.25,
    gamma: Annotated[
        float, NOT_NEGATIVE, "how strongly well-classified negatives are weighted down"
    ] = 2.0,
) -> Tensor:
    """IA-BCE of each element, without reduction.

    A positive has the cross entropy with ``t = p^alpha I^(1 - alpha)``, at least 0.01 and a
    constant: its gradient is ``p - t``. A negative has ``-p^gamma log(1 - p)``, through whose
    weight gradient flows. So in the authors' code, with one prediction for a ground truth, and in
    RF-DETR's; the ranks of its mixed matching are not here.

    Args:
        logits: (...) raw scores.
        labels: (...) 1 for positives at their class, 0 elsewhere, same shape as ``logits``.
        ious: (...) IoU of each positive's box with its ground truth, in [0, 1]; anything elsewhere.
        alpha: share of the score in the target; 0: the IoU alone.
        gamma: how strongly well-classified negatives are weighted down.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    check_same_shape(logits=logits, labels=labels, ious=ious)
    logits = widened(logits)
    is_positive, scores = labels > 0, logits.sigmoid()
    # Of negatives the IoU may be anything, a NaN as well.
    ious = torch.where(is_positive, ious.to(logits.dtype), 1.0)
    with torch.no_grad():
        targets = power(scores, alpha) * power(ious, 1 - alpha)
        targets = targets.clamp(min=_LEAST)
    # -t log p - (1 - t) log(1 - p)
    positive = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(is_positive, positive, power(scores, gamma) * F.softplus(logits))


@CLASSIFICATION_LOSSES.register(
    "ia_bce",
    options_from=(ia_bce_loss,),
    activations=("sigmoid",),
    definition="cross entropy with `t = p^alpha I^(1 - alpha)`, a constant of at least 0.01, for "
    "positives, `-p^gamma log(1 - p)` for negatives",
    use="DETRs: a target between score and IoU; RF-DETR's default",
    source="Cai et al. 2023, Align-DETR",
)
def _ia_bce(matched: MatchedPredictions, *, alpha, gamma) -> Tensor:
    labels = class_targets(matched)
    ious = class_targets(matched, matched.ious.detach())
    return sum_over_classes(matched, ia_bce_loss(matched.logits, labels, ious, alpha, gamma))
