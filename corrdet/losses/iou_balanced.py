"""IoU-balanced classification and localization loss ("IoU-balanced Loss Functions for
Single-stage Object Detection")."""

from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import NOT_NEGATIVE, POSITIVE, checked, one_of

from ._checks import check_per_positive, check_same_shape, power, widened
from .matched_predictions import MatchedPredictions
from .registry import COUPLINGS, LOCALIZATION_LOSSES
from .smooth_l1 import smooth_l1_loss


@checked
def iou_balanced_weights(
    losses: Tensor,
    ious: Tensor,
    eta: Annotated[
        float, NOT_NEGATIVE, "how strongly positives of high IoU are preferred; 0: not at all"
    ] = 1.5,
) -> Tensor:
    """Weights of the positives' losses by IoU that leave their sum unchanged, Eq. 2.

    ``w_i = I_i^eta * sum(losses) / sum(I^eta * losses)``. The weights are constants: no gradient
    flows through them.

    Args:
        losses: (P,) loss of each positive, not negative.
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1].
        eta: how strongly positives of high IoU are preferred; 0 is not at all.

    Returns:
        (P,) weights, at least float32; all 1 where the sum cannot be kept: every IoU is 0.

    Raises:
        TypeError, ValueError: not floating point, shapes other than the same (P,), a negative eta.
    """
    check_per_positive(losses=losses, ious=ious)
    losses, ious = widened(losses.detach()), widened(ious.detach())
    # Beside the largest, which changes nothing, so that not all powers of small IoUs underflow.
    largest = ious.amax() if len(ious) else ious.sum()
    weights = power(ious / torch.where(largest > 0, largest, 1.0), eta)
    weighted = (weights * losses).sum()
    # Not torch.where over the whole: a NaN has to stay one.
    return torch.where(weighted == 0, 1.0, weights * (losses.sum() / weighted))


@COUPLINGS.register(
    "iou_balanced",
    options_from=(iou_balanced_weights,),
    needs=("classification",),
    definition="losses of positives, at their own class, weighted by `I^eta sum(CE) / sum(I^eta "
    "CE)`",
    reaches="as the classification loss",
    use="good boxes get higher scores, at the same loss",
    source="IoU-balanced, Eq. 1, 2",
)
def _iou_balanced(
    matched: MatchedPredictions,
    *,
    classification,
    localization,
    own_class,
    eta,
    classes: Annotated[
        str,
        one_of(("own", "all")),
        "what of a positive is weighted: its loss at its own class, as in the authors' code, or at "
        "all classes",
    ] = "own",
) -> tuple[Tensor, Tensor]:
    if classes == "all":
        weights = iou_balanced_weights(classification, matched.ious, eta)
        return classification * weights, localization
    own = own_class()
    weights = iou_balanced_weights(own, matched.ious, eta)
    return classification + own * (weights - 1), localization


@checked
def iou_balanced_smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    ious: Tensor,
    lam: Annotated[float, NOT_NEGATIVE, "how strongly positives of high IoU are preferred"] = 1.5,
    weight: Annotated[
        float | None, POSITIVE.or_none(), "w_loc of Eq. 4; None: normalized, Eq. 5"
    ] = 3.049,
    delta: Annotated[
        float, NOT_NEGATIVE, "where smooth L1 passes from quadratic to linear"
    ] = 0.111,
) -> Tensor:
    """IoU-balanced smooth L1 loss of each positive, Eq. 3 with the weights of Eq. 4 or Eq. 5.

    No gradient flows through the weights. Pairs of lam and weight that keep the sum of the first
    step (Table 4): 0 and 1, 0.5 and 1.575, 1 and 2.226, 1.5 and 3.049, 1.8 and 3.649.

    Args:
        pred: (P, 4) box deltas as predicted.
        target: (P, 4) their targets.
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1].
        lam: how strongly positives of high IoU are preferred.
        weight: w_loc of Eq. 4, ``w = weight * I^lam``; None for Eq. 5, by which the sum is what it
            would be without weights.
        delta: where smooth L1 passes from quadratic to linear.

    Returns:
        (P,) losses, summed over the four deltas.

    Raises:
        TypeError, ValueError: not floating point, shapes that do not fit, a negative lam or delta.
    """
    check_same_shape(pred=pred, target=target)
    if pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(f"pred must have shape (P, 4), got {tuple(pred.shape)}")
    losses = smooth_l1_loss(widened(pred), widened(target), beta=delta).sum(dim=1)
    check_per_positive(losses=losses, ious=ious)
    if weight is None:
        return losses * iou_balanced_weights(losses, ious, lam)
    return losses * (weight * power(widened(ious.detach()), lam))


@LOCALIZATION_LOSSES.register(
    "iou_balanced_smooth_l1",
    options_from=(iou_balanced_smooth_l1_loss,),
    needs_deltas=True,
    definition="`w_loc I^lam` x smooth L1; `WEIGHT` None: the sum is that of smooth L1",
    source="IoU-balanced, Eq. 3 to 5",
)
def _iou_balanced_smooth_l1(matched: MatchedPredictions, *, lam, weight, delta) -> Tensor:
    deltas, targets = matched.delta_pairs
    return iou_balanced_smooth_l1_loss(deltas, targets, matched.box_ious, lam, weight, delta)
