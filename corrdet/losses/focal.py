"""Focal loss and the losses made from it, per element of a sigmoid head.

Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002), Quality Focal Loss (Li et al. 2020,
https://arxiv.org/abs/2006.04388) and Varifocal Loss (Zhang et al. 2021,
https://arxiv.org/abs/2008.13367).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import BOOL, NOT_NEGATIVE, at_most, checked

from ._checks import check_same_shape, power, widened
from .cross_entropy import class_targets, sum_over_classes
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES


@checked
def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: Annotated[
        float, at_most(1), "weight of positives, that of negatives is 1 - alpha; below 0: none"
    ] = 0.25,
    gamma: Annotated[
        float, NOT_NEGATIVE, "how strongly well-classified samples are weighted down"
    ] = 2.0,
) -> Tensor:
    """Focal loss of each element, without reduction (Lin et al. 2017, Eq. 5).

    Args:
        logits: (...) raw scores.
        targets: (...) 1 for positives, 0 for negatives, same shape as ``logits``.
        alpha: weight of the positives, negatives get 1 - alpha; below 0: no such weights.
        gamma: how strongly well-classified elements are weighted down; 0 is cross entropy.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    logits, targets = _checked(logits, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    # 1 - p_t
    error = probability + targets - 2 * probability * targets
    loss = cross_entropy * power(error, gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss


@CLASSIFICATION_LOSSES.register(
    "sigmoid_focal",
    options_from=(sigmoid_focal_loss,),
    activations=("sigmoid",),
    definition="`-alpha_t (1 - p_t)^gamma log p_t`",
    use="the usual one of dense detectors",
    source="Lin et al. 2017, Eq. 5",
)
def _sigmoid_focal(matched: MatchedPredictions, *, alpha, gamma) -> Tensor:
    losses = sigmoid_focal_loss(matched.logits, class_targets(matched), alpha, gamma)
    return sum_over_classes(matched, losses)


@checked
def quality_focal_loss(
    logits: Tensor,
    targets: Tensor,
    beta: Annotated[
        float, NOT_NEGATIVE, "how strongly samples near their target are weighted down"
    ] = 2.0,
) -> Tensor:
    """Quality Focal Loss of each element (Li et al. 2020): ``|y - p|^beta`` times cross entropy.

    Args:
        logits: (...) raw scores.
        targets: (...) y: the IoU of a positive's box for its ground-truth class, 0 elsewhere.
        beta: how strongly elements near their target are weighted down; 0 is cross entropy.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    logits, targets = _checked(logits, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return cross_entropy * power((targets - logits.sigmoid()).abs(), beta)


@CLASSIFICATION_LOSSES.register(
    "quality_focal",
    options_from=(quality_focal_loss,),
    activations=("sigmoid",),
    definition="`abs(y - p)^beta` x cross entropy, `y = I` at the class of a positive, else 0",
    use="the score is to be the IoU, without a coupling",
    source="Li et al. 2020",
)
def _quality_focal(matched: MatchedPredictions, *, beta) -> Tensor:
    targets = class_targets(matched, matched.ious.detach())
    return sum_over_classes(matched, quality_focal_loss(matched.logits, targets, beta))


@checked
def varifocal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: Annotated[float, NOT_NEGATIVE, "weight of the negatives"] = 0.75,
    gamma: Annotated[
        float, NOT_NEGATIVE, "how strongly well-classified negatives are weighted down"
    ] = 2.0,
    constant_weights: Annotated[
        bool, BOOL, "no gradient flows through the weights, as in RT-DETR and D-FINE"
    ] = False,
) -> Tensor:
    """Varifocal Loss of each element (Zhang et al. 2021).

    A positive's cross entropy is weighted by its target q, a negative's by ``alpha * p^gamma``.
    Gradient flows through the latter, as in its authors' code.

    Args:
        logits: (...) raw scores.
        targets: (...) q: the IoU of a positive's box for its ground-truth class, 0 elsewhere. A
            positive whose IoU is 0 is a negative.
        alpha: weight of the negatives.
        gamma: how strongly well-classified negatives are weighted down.
        constant_weights: let no gradient flow through the weights, as RT-DETR and D-FINE do; a
            positive whose IoU is 0 they leave out.

    Returns:
        (...) losses, not negative, at least float32.

    Raises:
        TypeError, ValueError: not floating point, or shapes that differ.
    """
    logits, targets = _checked(logits, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    scores = logits.detach().sigmoid() if constant_weights else logits.sigmoid()
    negative_weights = alpha * power(scores, gamma)
    return cross_entropy * torch.where(targets > 0, targets, negative_weights)


@CLASSIFICATION_LOSSES.register(
    "varifocal",
    options_from=(varifocal_loss,),
    activations=("sigmoid",),
    definition="cross entropy with `y`, weighted by `y` for positives, `alpha p^gamma` for "
    "negatives",
    use="as `quality_focal`; good positives count more",
    source="Zhang et al. 2021",
)
def _varifocal(matched: MatchedPredictions, *, alpha, gamma, constant_weights) -> Tensor:
    targets = class_targets(matched, matched.ious.detach())
    losses = varifocal_loss(matched.logits, targets, alpha, gamma, constant_weights)
    return sum_over_classes(matched, losses)


def _checked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    check_same_shape(logits=logits, targets=targets)
    logits = widened(logits)
    return logits, targets.to(logits.dtype)
