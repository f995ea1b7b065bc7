"""Cross entropy, and what losses of each logit of a sigmoid head have in common with it."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import NOT_NEGATIVE

from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES


@CLASSIFICATION_LOSSES.register(
    "sigmoid_cross_entropy",
    activations=("sigmoid",),
    definition="`-log p_t`",
    use="with sampling or mining, and in HarmonicDet",
)
def _sigmoid_cross_entropy(matched: MatchedPredictions) -> Tensor:
    targets = class_targets(matched)
    losses = F.binary_cross_entropy_with_logits(matched.logits, targets, reduction="none")
    return sum_over_classes(matched, losses)


@CLASSIFICATION_LOSSES.register(
    "softmax_cross_entropy",
    activations=("softmax",),
    definition="`-log softmax(s)_y`, of the background times its weight",
    use="softmax heads: Faster R-CNN, SSD; DETR with a background weight of 0.1",
)
def _softmax_cross_entropy(
    matched: MatchedPredictions,
    *,
    background_weight: Annotated[
        float, NOT_NEGATIVE, "weight of the samples without an object; 0.1 in DETR"
    ] = 1.0,
) -> Tensor:
    logits, labels = matched.logits, matched.labels
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    if background_weight != 1:
        losses = torch.where(labels == matched.num_classes, background_weight, 1.0) * losses
    # A NaN shows where nothing is trained, too.
    return torch.where(labels < 0, (logits.detach() * 0).sum(dim=1), losses)


def class_targets(matched: MatchedPredictions, values: float | Tensor = 1.0) -> Tensor:
    """(S, C) targets of a sigmoid head: a value for each positive at its class, 0 elsewhere.

    Args:
        matched: the batch.
        values: of the positives, one for all or (P,).
    """
    targets = torch.zeros_like(matched.logits)
    if isinstance(values, Tensor):
        values = values.to(targets.dtype)
    targets[matched.positives, matched.classes] = values
    return targets


def sum_over_classes(matched: MatchedPredictions, losses: Tensor) -> Tensor:
    """(S,) sums of (S, C) losses, 0 for ignored samples."""
    return losses.sum(dim=1) * (matched.labels >= 0)
