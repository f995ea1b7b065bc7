"""Focal loss for dense object detection (Lin et al., 2017, https://arxiv.org/abs/1708.02002)."""

import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each element, without reduction (Lin et al. 2017, Eq. 5).

    Args:
        logits: (...) raw scores.
        targets: (...) 1 for positives, 0 for negatives, same shape and dtype as ``logits``.
        alpha: weight of the positives, negatives get 1 - alpha; below 0: no such weights.
        gamma: how strongly well-classified elements are weighted down; 0 is cross entropy.

    Returns:
        (...) losses, not negative.

    Raises:
        ValueError: shapes that differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            "logits and targets must have the same shape, "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    # 1 - p_t
    error = probability + targets - 2 * probability * targets
    loss = cross_entropy * error**gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss
