"""Localization losses, one value per positive."""

from torch import Tensor

from corrdet.ops import elementwise_iou


def smooth_l1_loss(pred: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    """Smooth L1 of each element, without reduction (Girshick 2015, Eq. 3, with its corner at beta).

    Args:
        pred: (...) predictions.
        target: (...) targets, same shape.
        beta: where the loss passes from quadratic to linear; 0 is the L1 loss.

    Returns:
        (...) losses: ``0.5 * x**2 / beta`` for ``|x| < beta``, else ``|x| - 0.5 * beta``.

    Raises:
        ValueError: shapes that differ, or a negative beta.
    """
    if pred.shape != target.shape:
        raise ValueError(
            "pred and target must have the same shape, "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    difference = (pred - target).abs()
    if beta == 0:
        return difference
    # min(d, beta) keeps the quadratic branch from overflowing where the linear one is taken.
    quadratic = difference.clamp(max=beta)
    return quadratic * (difference - 0.5 * quadratic) / beta


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of each pair of boxes (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630).

    Args:
        pred: (P, 4) boxes, XYXY.
        target: (P, 4) boxes, XYXY.

    Returns:
        (P,) losses in [0, 2].
    """
    return 1 - elementwise_iou(pred, target, kind="giou")
