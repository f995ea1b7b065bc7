"""Gradient Harmonizing Mechanism (Li et al. 2019, "Gradient Harmonized Single-stage Detector",
https://arxiv.org/abs/1811.05181)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_same_shape, widened


def ghm_c_loss(
    logits: Tensor,
    targets: Tensor,
    bins: int = 30,
    momentum: float = 0.0,
    counts: Tensor | None = None,
) -> Tensor:
    """GHM-C: cross entropy of each element over the density of elements with a gradient like its.

    The gradient norm is ``|p - target|``; its density is the number of elements in the bin over
    the width of the bin (unit region approximation). Weights are constants.

    Args:
        logits: (S,) raw scores of all samples and classes that are not ignored, in a row.
        targets: (S,) 1 for positives, 0 for negatives, same dtype.
        bins: in which [0, 1] is divided.
        momentum: of the running mean of the counts over batches, in [0, 1).
        counts: (bins,) that running mean, updated in place; all -1 before the first batch, which is
            then taken as it is. Needed with a momentum.

    Returns:
        scalar, at least float32; 0 for no samples.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options.
    """
    check_ghm_options(bins, momentum)
    check_same_shape(logits=logits, targets=targets)
    logits, targets = widened(logits), widened(targets)
    norm = (logits.detach().sigmoid() - targets).abs()
    density = gradient_density(norm, bins, momentum, counts)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (cross_entropy / density).sum()


def ghm_r_loss(
    pred: Tensor,
    target: Tensor,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.0,
    counts: Tensor | None = None,
) -> Tensor:
    """GHM-R: authentic smooth L1, ``sqrt(d^2 + mu^2) - mu``, over the gradient density.

    The gradient norm of an element is ``|d / sqrt(d^2 + mu^2)|``.

    Args:
        pred: (P, 4) box deltas as predicted.
        target: (P, 4) their targets.
        mu: where the loss passes from quadratic to linear, positive.
        bins, momentum, counts: as :func:`ghm_c_loss`.

    Returns:
        scalar, at least float32; 0 for no positives.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options.
    """
    check_ghm_options(bins, momentum)
    check_mu(mu)
    check_same_shape(pred=pred, target=target)
    difference = widened(pred) - widened(target)
    # Not sqrt(d^2 + mu^2), whose square overflows.
    root = torch.hypot(difference, torch.full_like(difference, mu))
    norm = (difference.detach() / root.detach()).abs()
    density = gradient_density(norm, bins, momentum, counts)
    return ((root - mu) / density).sum()


def gradient_density(
    norm: Tensor, bins: int, momentum: float = 0.0, counts: Tensor | None = None
) -> Tensor:
    """Elements per unit of gradient norm around each element: those in its bin, times ``bins``.

    Args:
        norm: (...) gradient norms in [0, 1].
        bins, momentum, counts: as :func:`ghm_c_loss`.

    Returns:
        (...) densities; NaN where the norm is.

    Raises:
        ValueError: a momentum without counts, or counts of another shape.
    """
    index = (norm * bins).nan_to_num(0).long().clamp(0, bins - 1)
    now = torch.zeros(bins, dtype=norm.dtype, device=norm.device)
    # Whole numbers, so that the order of the additions does not matter.
    now.scatter_add_(0, index.flatten(), torch.ones_like(norm).flatten())
    if momentum > 0:
        if counts is None or tuple(counts.shape) != (bins,):
            got = None if counts is None else tuple(counts.shape)
            raise ValueError(f"a momentum needs counts of shape ({bins},), got {got}")
        started = counts[0] >= 0
        counts.copy_(torch.where(started, momentum * counts + (1 - momentum) * now, now))
        now = counts.clone()
    # `norm * 0` carries a NaN over.
    return now[index] * bins + norm * 0


def check_ghm_options(bins: int, momentum: float) -> None:
    """
    Raises:
        ValueError: there is no bin, or a momentum outside [0, 1).
    """
    if not bins >= 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")


def check_mu(mu: float) -> None:
    """
    Raises:
        ValueError: mu is not positive.
    """
    if not mu > 0:
        raise ValueError(f"mu must be positive, got {mu}")
