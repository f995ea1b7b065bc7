"""Gradient Harmonizing Mechanism (Li et al. 2019, "Gradient Harmonized Single-stage Detector",
https://arxiv.org/abs/1811.05181)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import POSITIVE, SHARE_BELOW_1, at_least, checked, one_of

from ._checks import check_same_shape, widened
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES

Bins = Annotated[int, at_least(1), "bins of the gradient norm"]
Momentum = Annotated[float, SHARE_BELOW_1, "momentum of the running mean of the counts of the bins"]
Variant = Annotated[
    str,
    one_of(("mmdetection", "formula")),
    "the density of the authors' experiments, made with mmdetection: over the bins that are not "
    "empty, of a running mean that begins at 0; or of the paper's formula",
]


@checked
def ghm_c_loss(
    logits: Tensor,
    targets: Tensor,
    bins: Bins = 30,
    momentum: Momentum = 0.75,
    counts: Tensor | None = None,
    variant: Variant = "mmdetection",
) -> Tensor:
    """GHM-C: cross entropy of each element over the density of elements with a gradient like its.

    The gradient norm is ``|p - target|``; its density is the number of elements in the bin over
    the width of the bin (unit region approximation). Weights are constants. The authors' results
    are mmdetection's, which takes 1 / (number of bins that are not empty) for that width.

    Args:
        logits: (S,) raw scores of all samples and classes that are not ignored, in a row.
        targets: (S,) 1 for positives, 0 for negatives, same dtype.
        bins: in which [0, 1] is divided.
        momentum: of the running mean of the counts over batches, in [0, 1).
        counts: (bins,) that running mean, updated in place; all -1 before the first batch, which
            the formula takes as it is, and mmdetection as behind a mean of 0. None: the counts are
            those of this batch, whatever the momentum.
        variant: "mmdetection" or "formula", see above. The running mean of mmdetection leaves bins
            alone that are empty in a batch.

    Returns:
        scalar, at least float32; 0 for no samples.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options.
    """
    check_same_shape(logits=logits, targets=targets)
    logits, targets = widened(logits), widened(targets)
    norm = (logits.detach().sigmoid() - targets).abs()
    density = gradient_density(norm, bins, momentum, counts, variant)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (cross_entropy / density).sum()


@CLASSIFICATION_LOSSES.register(
    "ghm_c",
    options_from=(ghm_c_loss,),
    activations=("sigmoid",),
    per_sample=False,
    definition="cross entropy over the density of gradient norms `abs(p - y)`",
    use="baseline",
    source="Li et al. 2019",
)
def _ghm_c(matched: MatchedPredictions, *, state, bins, momentum, variant) -> Tensor:
    counts = _running_counts(state, bins, matched.logits)
    keep = matched.labels >= 0
    targets = matched.binary_labels[keep].to(matched.logits.dtype)
    logits = matched.logits[keep].flatten()
    return ghm_c_loss(logits, targets.flatten(), bins, momentum, counts, variant)


def _running_counts(state: dict[str, Tensor], bins: int, like: Tensor) -> Tensor:
    # Weights may come from a training with other bins.
    if "counts" not in state or len(state["counts"]) != bins:
        state["counts"] = torch.full((bins,), -1.0, dtype=like.dtype)
    # A copy: what was saved before is not to change.
    state["counts"] = state["counts"].to(like.device, copy=True)
    return state["counts"]


@checked
def ghm_r_loss(
    pred: Tensor,
    target: Tensor,
    mu: Annotated[float, POSITIVE, "where the loss passes from quadratic to linear"] = 0.02,
    bins: Bins = 10,
    momentum: Momentum = 0.7,
    counts: Tensor | None = None,
    variant: Variant = "mmdetection",
) -> Tensor:
    """GHM-R: authentic smooth L1, ``sqrt(d^2 + mu^2) - mu``, over the gradient density.

    The gradient norm of an element is ``|d / sqrt(d^2 + mu^2)|``.

    Args:
        pred: (P, 4) box deltas as predicted.
        target: (P, 4) their targets.
        mu: where the loss passes from quadratic to linear, positive.
        bins, momentum, counts, variant: as :func:`ghm_c_loss`.

    Returns:
        scalar, at least float32; 0 for no positives.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or options.
    """
    check_same_shape(pred=pred, target=target)
    difference = widened(pred) - widened(target)
    # Not sqrt(d^2 + mu^2), whose square overflows.
    root = torch.hypot(difference, torch.full_like(difference, mu))
    norm = (difference.detach() / root.detach()).abs()
    density = gradient_density(norm, bins, momentum, counts, variant)
    return ((root - mu) / density).sum()


@LOCALIZATION_LOSSES.register(
    "ghm_r",
    options_from=(ghm_r_loss,),
    needs_deltas=True,
    per_sample=False,
    definition="`sqrt(d^2 + mu^2) - mu` over the density of gradient norms; one sum over all "
    "positives",
    source="Li et al. 2019",
)
def _ghm_r(matched: MatchedPredictions, *, state, mu, bins, momentum, variant) -> Tensor:
    deltas, targets = matched.delta_pairs
    counts = _running_counts(state, bins, deltas)
    return ghm_r_loss(deltas, targets, mu, bins, momentum, counts, variant)


def gradient_density(
    norm: Tensor, bins: int, momentum: float, counts: Tensor | None, variant: str
) -> Tensor:
    """Elements per unit of gradient norm around each element: those in its bin over its width.

    Args:
        norm: (...) gradient norms in [0, 1].
        bins, momentum, counts, variant: as :func:`ghm_c_loss`.

    Returns:
        (...) densities; NaN where the norm is.

    Raises:
        ValueError: counts of another shape.
    """
    index = (norm * bins).nan_to_num(0).long().clamp(0, bins - 1)
    now = torch.zeros(bins, dtype=norm.dtype, device=norm.device)
    # Whole numbers, so that the order of the additions does not matter.
    now.scatter_add_(0, index.flatten(), torch.ones_like(norm).flatten())
    if counts is not None and tuple(counts.shape) != (bins,):
        raise ValueError(f"counts must have shape ({bins},), got {tuple(counts.shape)}")
    filled = now > 0
    num_bins = filled.sum() if variant == "mmdetection" else bins
    if counts is not None and momentum > 0:
        if variant == "mmdetection":
            before = counts.clamp(min=0)
            after = torch.where(filled, momentum * before + (1 - momentum) * now, before)
        else:
            after = torch.where(counts[0] >= 0, momentum * counts + (1 - momentum) * now, now)
        counts.copy_(after)
        now = counts.clone()
    # `norm * 0` carries a NaN over.
    return now[index] * num_bins + norm * 0
