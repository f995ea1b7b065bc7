"""Correlation Loss: 1 - rho(IoU, score) over the positives (thesis "Correlation Loss", chapter 4).

The coefficients are Pearson (Eq. 2.1), Spearman (Eq. 2.2) with soft ranks (Blondel et al. 2020),
and concordance (Eq. 2.3).
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from corrdet.ops import soft_rank
from corrdet.options import BOOL, POSITIVE, checked, one_of

COEFFICIENTS = ("pearson", "spearman", "concordance")
Coefficient = Annotated[
    str, one_of(COEFFICIENTS), "`pearson` (Eq. 2.1), `spearman` (2.2) or `concordance` (2.3)"
]
Strength = Annotated[
    float | None,
    POSITIVE.or_none(),
    "strength of the soft ranks of `spearman`; None: from the data; at 1 the ranks of scores are "
    "affine, as in the thesis' code",
]
Gradient = Annotated[
    str,
    one_of(("scores", "ious", "both")),
    "what the gradient reaches (Sec. 5.5.4: scores do best)",
]
SoftBoth = Annotated[
    bool,
    BOOL,
    "of `spearman`: rank scores and IoUs softly; with `STRENGTH` 1 the thesis' code, which is "
    "`pearson`",
]
Unbiased = Annotated[
    bool, BOOL, "of `concordance`: variances over n - 1, as in the thesis' code, not over n"
]


def pearson_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's linear correlation coefficient, Eq. 2.1.

    Args:
        x: (n,) floating point.
        y: (n,) floating point, same dtype and device.

    Returns:
        scalar in [-1, 1], at least float32, differentiable in both; 0 with zero gradient where it
        is not defined (fewer than two values, or one of the two constant); NaN if any value is.

    Raises:
        TypeError, ValueError: not floating point, or shapes that are not the same (n,).
    """
    x, y = checked_pair(x, y)
    if len(x) < 2:
        return (x * 0 + y * 0).sum()
    undefined = _is_constant(x) | _is_constant(y)
    x, y = _centered_unit_scale(x, undefined), _centered_unit_scale(y, undefined)
    return torch.where(
        undefined, 0.0, (x * y).mean() / (x.square().mean() * y.square().mean()).sqrt()
    )


@checked
def spearman_correlation(
    x: Tensor, y: Tensor, strength: Strength = None, soft_both: SoftBoth = False
) -> Tensor:
    """Spearman's rank correlation coefficient, Eq. 2.2, differentiable in ``x`` through soft ranks.

    ``x`` is ranked softly, by projection onto the permutahedron, and ``y`` exactly (ties share
    their average rank), without gradient.

    The strength decides what is computed. Sorted neighbours further apart than the strength have
    their exact ranks, at distance one, and get no gradient; where values are denser they are
    pooled, and pulled apart. From a strength of about range / n on, which for probabilities 1
    always is, everything is one pool: the ranks are an affine function of ``x``, and the
    coefficient silently becomes Pearson's of ``x`` and rank(``y``). The default hence comes from
    the data: half the mean distance of n values spread evenly with the standard deviation of ``x``,
    ``sqrt(3) * std(x) / n``. There, half of the values or more get gradient, and the ranks still
    follow the exact ones; and it does not change with the scale of ``x``. docs/losses.md shows it.

    Args:
        x: (n,) floating point, gets gradient.
        y: (n,) floating point, same dtype and device, gets none.
        strength: of the soft ranks, in units of ``x``, positive; None for the default above.
        soft_both: rank ``y`` softly too, by the strength or its own default; it gets no gradient.

    Returns:
        scalar; undefined and NaN values as in :func:`pearson_correlation`.

    Raises:
        TypeError, ValueError: as :func:`pearson_correlation`, or a strength that is not positive.
    """
    x, y = checked_pair(x, y)
    if len(x) < 2:
        return (x * 0).sum()
    ranks = _soft_ranks(y.detach(), strength) if soft_both else average_ranks(y)
    return pearson_correlation(_soft_ranks(x, strength), ranks).to(x.dtype)


@checked
def concordance_correlation(x: Tensor, y: Tensor, unbiased: Unbiased = False) -> Tensor:
    """Lin's concordance correlation coefficient, Eq. 2.3: 1 only where ``x`` equals ``y``.

    Args:
        x, y: as of :func:`pearson_correlation`.
        unbiased: covariance and variances are sums over n - 1, not over n.

    Returns, Raises: as :func:`pearson_correlation`.
    """
    x, y = checked_pair(x, y)
    if len(x) < 2:
        return (x * 0 + y * 0).sum()
    undefined = _is_constant(x) | _is_constant(y)
    mean_x, mean_y = x.mean(), y.mean()
    covariance = ((x - mean_x) * (y - mean_y)).mean()
    variances = (x - mean_x).square().mean() + (y - mean_y).square().mean()
    if unbiased:
        covariance, variances = (
            value * (len(x) / (len(x) - 1)) for value in (covariance, variances)
        )
    spread = variances + (mean_x - mean_y).square()
    # Underflow of the squares: values that differ by less than their square can tell.
    undefined = undefined | (spread == 0)
    return torch.where(undefined, 0.0, 2 * covariance / torch.where(undefined, 1.0, spread))


@checked
def correlation_loss(
    scores: Tensor,
    ious: Tensor,
    coefficient: Coefficient = "concordance",
    strength: Strength = None,
    gradient: Gradient = "scores",
    unbiased: Unbiased = False,
    soft_both: SoftBoth = False,
) -> Tensor:
    """Correlation Loss, ``1 - rho(IoU, score)``; by default the gradient reaches the scores only.

    Args:
        scores: (P,) score of each positive's ground-truth class, in [0, 1].
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1].
        coefficient: "pearson", "spearman" or "concordance".
        strength: of the soft ranks, only for "spearman", see :func:`spearman_correlation`.
        gradient: what it reaches: "scores", "ious", or "both" (Sec. 5.5.4, where "scores" did best;
            the others also reward boxes for being as bad as their scores). Of "spearman", what it
            reaches is ranked softly, and the other exactly.
        unbiased: of "concordance", see :func:`concordance_correlation`.
        soft_both: of "spearman", rank softly what gets no gradient, too. With strength 1 that is
            how the thesis' numbers were made: ranks of values in [0, 1] are then affine, and the
            coefficient Pearson's of scores and IoUs.

    Returns:
        scalar in [0, 2]; 0 with zero gradient, still attached to the graph, for fewer than two
        positives or where scores or IoUs are all the same; NaN if any value is.

    Raises:
        TypeError, ValueError: as the coefficients, an unknown coefficient or gradient, or a
            strength that is not positive, whatever the coefficient.
    """
    x, y = trained_first(*checked_pair(scores, ious), gradient)
    if len(x) < 2:
        return ((x + y) * 0).sum()
    if coefficient == "pearson":
        rho = pearson_correlation(x, y)
    elif coefficient == "concordance":
        rho = concordance_correlation(x, y, unbiased)
    elif gradient == "both":
        rho = pearson_correlation(_soft_ranks(x, strength), _soft_ranks(y, strength)).to(x.dtype)
    else:
        rho = spearman_correlation(x, y, strength, soft_both)
    undefined = _is_constant(x) | _is_constant(y)
    return torch.where(undefined, (x + y).mean() * 0, 1 - rho)


def trained_first(x: Tensor, y: Tensor, gradient: str) -> tuple[Tensor, Tensor]:
    """Scores and IoUs, or IoUs and scores: the second is what gets no gradient, if there is one.

    All coefficients are symmetric.
    """
    if gradient == "both":
        return x, y
    return (y, x.detach()) if gradient == "ious" else (x, y.detach())


def average_ranks(values: Tensor) -> Tensor:
    """Exact ascending ranks 1..n, ties sharing their average, without gradient.

    Args:
        values: (n,) floating point.

    Returns:
        (n,) ranks in the dtype of ``values``; all NaN if any value is NaN.
    """
    values = values.detach().contiguous()
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    ranks = (below + not_above + 1).to(values.dtype) / 2
    return torch.where(values.isnan().any(), torch.nan, ranks)


def _soft_ranks(x: Tensor, strength: float | None) -> Tensor:
    """Soft ranks of at least two values; at the data's own strength, if none is given.

    In float64: where the strength is large beside the values, as 1 is beside the scores of a
    detector that has just begun, what tells them apart are the last digits of ranks of hundreds.
    """
    x = x.double()
    if strength is not None:
        return soft_rank(x, strength=strength)
    # The rank of the scaled values at strength 1 is the rank of the values at strength `scale`.
    # The scale is a constant, and a tensor: no synchronization with the device.
    values, constant = x.detach(), _is_constant(x)
    spread = _centered_unit_scale(values, constant).square().mean().sqrt()
    scale = math.sqrt(3) * spread * _largest_deviation(values, constant) / len(x)
    return soft_rank(x / scale)


def checked_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as vectors of one floating dtype of at least 32 bits."""
    for value in (x, y):
        if not torch.is_tensor(value) or not value.is_floating_point():
            got = value.dtype if torch.is_tensor(value) else type(value).__name__
            raise TypeError(f"expected floating-point tensors, got {got}")
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(
            "expected two tensors of the same shape (n,), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"expected one device, got {x.device} and {y.device}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


def _is_constant(x: Tensor) -> Tensor:
    """Whether all values are the same; False if any is NaN, so that NaN is never hidden."""
    lowest, highest = torch.aminmax(x.detach())
    return lowest == highest


def _largest_deviation(x: Tensor, constant: Tensor) -> Tensor:
    x = x.detach()
    return torch.where(constant, 1.0, (x - x.mean()).abs().amax())


def _centered_unit_scale(x: Tensor, constant: Tensor) -> Tensor:
    """x minus its mean, over its largest deviation so that no square can under- or overflow."""
    centered = (x - x.mean()) / _largest_deviation(x, constant)
    # Any values that are not constant will do where the result is not used, so long as no gradient
    # divides by zero there.
    filler = torch.linspace(-1, 1, len(x), dtype=x.dtype, device=x.device)
    return torch.where(constant, filler, centered)
