"""Localization losses: on box deltas per element, on boxes per pair."""

import math

import torch
from torch import Tensor

from corrdet.ops import elementwise_iou

from ._checks import check_same_shape, widened

# The least IoU that the IoU loss takes the logarithm of.
_LEAST_IOU = 1e-6


def smooth_l1_loss(pred: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
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
    check_smooth_l1_options(beta)
    check_same_shape(pred=pred, target=target)
    difference = (pred - target).abs()
    if beta == 0:
        return difference
    # min(d, beta) keeps the quadratic branch from overflowing where the linear one is taken.
    quadratic = difference.clamp(max=beta)
    return quadratic * (difference - 0.5 * quadratic) / beta


def check_smooth_l1_options(beta: float) -> None:
    """
    Raises:
        ValueError: a negative beta.
    """
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")


def balanced_l1_loss(
    pred: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5
) -> Tensor:
    """Balanced L1 of each element (Pang et al. 2019, https://arxiv.org/abs/1904.02701).

    ``alpha / b (b |x| + 1) ln(b |x| + 1) - alpha |x|`` for ``|x| < 1``, else ``gamma |x| + C``.
    b makes the gradient continuous, ``alpha ln(b + 1) = gamma``, and C the loss.

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
    check_balanced_l1_options(alpha, gamma)
    check_same_shape(pred=pred, target=target)
    difference = (widened(pred) - widened(target)).abs()
    b = math.exp(gamma / alpha) - 1
    inner = difference.clamp(max=1)
    loss = alpha / b * (b * inner + 1) * torch.log1p(b * inner) - alpha * inner
    return loss + gamma * (difference - inner)


def check_balanced_l1_options(alpha: float, gamma: float) -> None:
    """
    Raises:
        ValueError: one is not positive.
    """
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """-ln IoU of each pair of boxes (Yu et al. 2016, "UnitBox", https://arxiv.org/abs/1608.01471).

    Args:
        pred: (P, 4) boxes, XYXY.
        target: (P, 4) boxes, XYXY.

    Returns:
        (P,) losses; at most -ln 1e-6, without gradient, for boxes that overlap less than that.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.elementwise_iou`.
    """
    return -elementwise_iou(widened(pred), widened(target)).clamp(min=_LEAST_IOU).log()


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of each pair of boxes (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 2].
    """
    return 1 - elementwise_iou(pred, target, kind="giou")


def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - DIoU of each pair of boxes (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 2].
    """
    return 1 - elementwise_iou(pred, target, kind="diou")


def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU of each pair of boxes (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 3].
    """
    return 1 - elementwise_iou(pred, target, kind="ciou")
