"""Smooth L1 (Girshick 2015, "Fast R-CNN", https://arxiv.org/abs/1504.08083)."""

from typing import Annotated

from torch import Tensor

from corrdet.options import NOT_NEGATIVE, checked

from ._checks import check_same_shape
from .matched_predictions import MatchedPredictions
from .registry import LOCALIZATION_LOSSES


@checked
def smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    beta: Annotated[
        float, NOT_NEGATIVE, "where the loss passes from quadratic to linear; 0: L1"
    ] = 0.0,
) -> Tensor:
    """Smooth L1 of each element, without reduction (Girshick 2015, Eq. 3, with its corner at beta).

    Args:
        pred: (...) predictions.
        target: (...) targets, same shape.
        beta: where the loss passes from quadratic to linear; 0 is the L1 loss.

    Returns:
        (...) losses: ``0.5 * x**2 / beta`` for ``|x| < beta``, else ``|x| - 0.5 * beta``.

    Raises:
        TypeError, ValueError: not floating point, shapes that differ, or a negative beta.
    """
    check_same_shape(pred=pred, target=target)
    difference = (pred - target).abs()
    if beta == 0:
        return difference
    # min(d, beta) keeps the quadratic branch from overflowing where the linear one is taken.
    quadratic = difference.clamp(max=beta)
    return quadratic * (difference - 0.5 * quadratic) / beta


@LOCALIZATION_LOSSES.register(
    "smooth_l1",
    options_from=(smooth_l1_loss,),
    needs_deltas=True,
    definition="`x^2 / (2 beta)` below `beta`, else `abs(x) - beta / 2`; summed over the deltas",
    source="Girshick 2015, Eq. 3",
)
def _smooth_l1(matched: MatchedPredictions, *, beta) -> Tensor:
    return smooth_l1_loss(*matched.delta_pairs, beta).sum(dim=1)
