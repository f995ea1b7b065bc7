"""Balanced L1 (Pang et al. 2019, "Libra R-CNN", https://arxiv.org/abs/1904.02701)."""

import math
from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import POSITIVE, checked

from ._checks import check_same_shape, widened
from .matched_predictions import MatchedPredictions
from .registry import LOCALIZATION_LOSSES


@checked
def balanced_l1_loss(
    pred: Tensor,
    target: Tensor,
    alpha: Annotated[float, POSITIVE, "the smaller, the more small differences weigh"] = 0.5,
    gamma: Annotated[float, POSITIVE, "largest gradient"] = 1.5,
) -> Tensor:
    """Balanced L1 of each element, without reduction.

    ``alpha / b (b |x| + 1) ln(b |x| + 1) - alpha |x|`` for ``|x| < 1``, else ``gamma |x| + C``,
    with b so that the gradient is continuous, ``alpha ln(b + 1) = gamma``, and C so that the loss
    is.

    Args:
        pred: (...) predictions.
        target: (...) targets, same shape.
        alpha: the smaller, the more elements of small differences weigh; positive.
        gamma: largest gradient, positive.

    Returns:
        (...) losses, not negative.

    Raises:
        TypeError, ValueError: not floating point, shapes that differ, or options not positive.
    """
    check_same_shape(pred=pred, target=target)
    difference = (widened(pred) - widened(target)).abs()
    b = math.exp(gamma / alpha) - 1
    inner = difference.clamp(max=1)
    loss = alpha / b * (b * inner + 1) * torch.log1p(b * inner) - alpha * inner
    return loss + gamma * (difference - inner)


@LOCALIZATION_LOSSES.register(
    "balanced_l1",
    options_from=(balanced_l1_loss,),
    needs_deltas=True,
    definition="`alpha / b (b x + 1) ln(b x + 1) - alpha x` below 1, else linear",
    source="Pang et al. 2019",
)
def _balanced_l1(matched: MatchedPredictions, *, alpha, gamma) -> Tensor:
    return balanced_l1_loss(*matched.delta_pairs, alpha, gamma).sum(dim=1)
