"""IoU-balanced classification and localization loss ("IoU-balanced Loss Functions for
Single-stage Object Detection")."""

import torch
from torch import Tensor

from ._checks import check_per_positive, check_same_shape, power, widened
from .localization import smooth_l1_loss


def iou_balanced_weights(losses: Tensor, ious: Tensor, eta: float = 1.5) -> Tensor:
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
    check_exponent(eta=eta)
    check_per_positive(losses=losses, ious=ious)
    losses, ious = widened(losses.detach()), widened(ious.detach())
    weights = power(ious, eta)
    weighted = (weights * losses).sum()
    # Not torch.where over the whole: a NaN has to stay one.
    return torch.where(weighted == 0, 1.0, weights * (losses.sum() / weighted))


def iou_balanced_smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    ious: Tensor,
    lam: float = 1.5,
    weight: float | None = 3.049,
    delta: float = 0.111,
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
    check_iou_balanced_options(lam, weight, delta)
    check_same_shape(pred=pred, target=target)
    if pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(f"pred must have shape (P, 4), got {tuple(pred.shape)}")
    losses = smooth_l1_loss(widened(pred), widened(target), beta=delta).sum(dim=1)
    check_per_positive(losses=losses, ious=ious)
    if weight is None:
        return losses * iou_balanced_weights(losses, ious, lam)
    return losses * (weight * power(widened(ious.detach()), lam))


def check_exponent(**exponents: float) -> None:
    """
    Raises:
        ValueError: one is negative.
    """
    for name, value in exponents.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def check_iou_balanced_options(lam: float, weight: float | None, delta: float) -> None:
    """
    Raises:
        ValueError: :func:`iou_balanced_smooth_l1_loss` cannot work with these.
    """
    check_exponent(lam=lam, delta=delta)
    if weight is not None and not weight > 0:
        raise ValueError(f"weight must be positive, or None to be normalized, got {weight}")
