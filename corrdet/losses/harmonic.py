"""HarmonicDet ("Reconcile Prediction Consistency for Balanced Object Detection")."""

from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import BOOL, NOT_NEGATIVE, at_most, checked

from ._checks import check_per_positive, widened
from .matched_predictions import MatchedPredictions
from .registry import COUPLINGS, LOCALIZATION_LOSSES
from .smooth_l1 import smooth_l1_loss


@checked
def harmonic_factors(
    classification: Tensor,
    localization: Tensor,
    stopped: Annotated[
        bool, BOOL, "True: the factors weigh only, and no gradient flows through them"
    ] = False,
) -> tuple[Tensor, Tensor]:
    """The factors of the harmonic loss, Eq. 3: 1 + exp(-L) and 1 + exp(-CE), both with gradient.

    With their gradient, a positive whose CE is above 1.28 is pushed to be localized worse as long
    as L is small: the derivative with respect to L is 1 + exp(-CE) - CE exp(-L).

    Args:
        classification: (P,) classification loss CE of each positive.
        localization: (P,) localization loss L of each positive.
        stopped: True: the factors weigh only, and no gradient flows through them; not the paper's.

    Returns:
        factor of the classification loss and factor of the localization loss, (P,) each.

    Raises:
        TypeError, ValueError: not floating point, or shapes other than the same (P,).
    """
    check_per_positive(classification=classification, localization=localization)
    if stopped:
        classification, localization = classification.detach(), localization.detach()
    return 1 + torch.exp(-widened(localization)), 1 + torch.exp(-widened(classification))


def harmonic_loss(classification: Tensor, localization: Tensor) -> Tensor:
    """Harmonic loss of each positive, Eq. 2: ``(1 + exp(-L)) CE + (1 + exp(-CE)) L``.

    Gradient flows through the factors too (Eq. 4 to 7): each task learns from the other.

    Args, Raises: as :func:`harmonic_factors`.

    Returns:
        (P,) losses, at least float32.
    """
    factors = harmonic_factors(classification, localization)
    return factors[0] * widened(classification) + factors[1] * widened(localization)


@COUPLINGS.register(
    "harmonic",
    needs=("classification", "localization"),
    options_from=(harmonic_factors,),
    definition="`(1 + exp(-L)) CE + (1 + exp(-CE)) L` of positives in place of `CE + L`",
    reaches="both branches, from both losses",
    use="each task learns from the other",
    source="HarmonicDet, Eq. 2 to 7",
)
def _harmonic(
    matched: MatchedPredictions, *, classification, localization, stopped
) -> tuple[Tensor, Tensor]:
    factors = harmonic_factors(classification, localization, stopped)
    return factors[0] * classification, factors[1] * localization


@checked
def task_contrastive_loss(
    probabilities: Tensor,
    labels: Tensor,
    ious: Tensor,
    margin: Annotated[float, NOT_NEGATIVE, "differences up to this cost nothing"] = 0.2,
) -> Tensor:
    """Task-contrastive loss of each positive, Eq. 8: ``max(0, |p - I| - margin) / (1 + exp(E))``.

    p is the probability of the ground-truth class, E the entropy of the probabilities, in nats; the
    less certain the classifier, the smaller the loss. Gradient flows through both, not through I.

    Args:
        probabilities: (P, C) of all classes: softmax, the background among them, or sigmoid.
        labels: (P,) int64, the ground-truth class of each positive.
        ious: (P,) I, the IoU of each positive's predicted box with its ground truth, in [0, 1].
        margin: differences up to this cost nothing, not negative.

    Returns:
        (P,) losses, at least float32.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, or a negative margin.
    """
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        raise TypeError("probabilities must be a floating-point tensor")
    if probabilities.dim() != 2:
        raise ValueError(f"probabilities must have shape (P, C), got {tuple(probabilities.shape)}")
    for name, tensor in (("labels", labels), ("ious", ious)):
        if tuple(tensor.shape) != (len(probabilities),):
            raise ValueError(
                f"{name} must have shape ({len(probabilities)},), got {tuple(tensor.shape)}"
            )
    probabilities = widened(probabilities)
    p = probabilities.gather(1, labels[:, None])[:, 0]
    gap = ((p - widened(ious.detach())).abs() - margin).clamp(min=0)
    # Of a probability of 0 the entropy has no gradient.
    positive = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny)
    entropy = -(positive * positive.log()).sum(dim=1)
    # 1 / (1 + exp(E)), which overflows for many classes.
    return gap * torch.sigmoid(-entropy)


@COUPLINGS.register(
    "task_contrastive",
    options_from=(task_contrastive_loss,),
    definition="`max(0, abs(p - I) - margin) / (1 + exp(entropy))`, over `N`",
    reaches="scores",
    use="with `harmonic`",
    source="HarmonicDet, Eq. 8",
)
def _task_contrastive(matched: MatchedPredictions, *, margin) -> Tensor:
    return task_contrastive_loss(matched.probabilities, matched.classes, matched.ious, margin)


@checked
def harmonic_iou_loss(
    ious: Tensor,
    gamma: Annotated[float, at_most(1), "how much more boxes of high IoU weigh"] = 0.8,
) -> Tensor:
    """Harmonic IoU loss of each positive, Eq. 10: ``(1 + I)^gamma (1 - I)``.

    Args:
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1], with
            gradient to the box.
        gamma: how much more boxes of high IoU weigh; at most 1, above which the loss would rise
            with the IoU where that is small.

    Returns:
        (P,) losses, at least float32.

    Raises:
        TypeError: not floating point.
        ValueError: gamma above 1, or a shape other than (P,).
    """
    check_per_positive(ious=ious)
    ious = widened(ious)
    return (1 + ious) ** gamma * (1 - ious)


@LOCALIZATION_LOSSES.register(
    "harmonic_iou",
    options_from=(harmonic_iou_loss,),
    bounded=True,
    definition="`(1 + I)^gamma (1 - I)`, gamma at most 1, so that it falls with the IoU",
    source="HarmonicDet, Eq. 10",
)
def _harmonic_iou(matched: MatchedPredictions, *, gamma) -> Tensor:
    return harmonic_iou_loss(matched.box_ious, gamma)


@LOCALIZATION_LOSSES.register(
    "smooth_l1_harmonic_iou",
    options_from=(smooth_l1_loss, harmonic_iou_loss),
    needs_deltas=True,
    definition="smooth L1 of the deltas + `alpha` x harmonic IoU of the boxes",
    source="HarmonicDet, Eq. 11",
)
def _smooth_l1_harmonic_iou(
    matched: MatchedPredictions,
    *,
    beta,
    alpha: Annotated[float, NOT_NEGATIVE, "weight of the harmonic IoU loss"] = 1.5,
    gamma,
) -> Tensor:
    smooth_l1 = smooth_l1_loss(*matched.delta_pairs, beta).sum(dim=1)
    return smooth_l1 + alpha * harmonic_iou_loss(matched.box_ious, gamma)
