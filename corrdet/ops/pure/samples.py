"""The samples of a ranking loss, checked and in descending order of their logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import compute_dtype
from .sums import sum_dtype


class Samples(NamedTuple):
    """Of one batch; P positives, and the N negatives that count for one of them.

    Coordinates are negated logits in the dtype of sums, so that ascending order begins with the
    highest logit: sums from above keep few far samples apart from the many below.
    """

    positives: Tensor  # (P,), their indices among the samples
    order: Tensor  # (P,), of the positives in the batch, from the highest logit down
    q: Tensor  # (P,) coordinates of the positives, ascending
    negatives: Tensor  # (N,), their indices among the samples, ordered as y
    y: Tensor  # (N,) coordinates of the negatives, ascending
    is_finite: bool  # whether all logits that are not ignored are


def split_targets(targets: Tensor, soft: bool) -> tuple[Tensor, Tensor]:
    """Which samples are positives and which negatives.

    Args:
        targets: (S,), 1 for positives, 0 for negatives, -1 for what is ignored.
        soft: whether positives are all in (0, 1].

    Raises:
        ValueError: another target.
    """
    positive = (targets > 0) & (targets <= 1) if soft else targets == 1
    negative = targets == 0
    known = positive | negative
    if targets.dtype.is_signed:
        known |= targets == -1
    if not bool(known.all()):
        position = int((~known).nonzero()[0, 0])
        expected = "targets must be -1 or in [0, 1]" if soft else "labels must be -1, 0 or 1"
        value = targets[position].item()
        raise ValueError(f"{expected}, got {float(value):g} at position {position}")
    return positive, negative


def check_count(name: str, values: Tensor, positives: int) -> None:
    """Raise a ValueError unless there is a value for each positive."""
    if values.numel() != positives:
        raise ValueError(
            f"{name} must have one value per positive, {positives}, got {values.numel()}"
        )


def check_range(name: str, values: Tensor) -> None:
    """Raise a ValueError where a value is outside of [0, 1]; NaN is not."""
    outside = (values < 0) | (values > 1)
    if bool(outside.any()):
        position = int(outside.nonzero()[0, 0])
        raise ValueError(
            f"{name} must be in [0, 1], got {float(values[position]):g} at position {position}"
        )


def argsort_descending(values: Tensor) -> Tensor:
    """The stable order of finite float32 or float64 values, from the largest down.

    By their bits, as integers of the same order: PyTorch sorts integers several times as fast.
    """
    bits = (values + 0.0).view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    largest = torch.iinfo(bits.dtype).max
    # Negative numbers are larger as integers the further they are below 0, and come last.
    keys = torch.where(bits < 0, bits & largest, ~bits)
    return keys.sort(stable=True).indices


def read_samples(logits: Tensor, targets: Tensor, soft: bool, delta: float) -> Samples:
    """Split and sort a batch.

    Args:
        logits: (S,)
        targets: (S,), see :func:`split_targets`.
        delta: negatives that are not less than so much below the lowest positive are kept.

    Raises:
        ValueError: a target that there is not.
    """
    positive, negative = split_targets(targets, soft)
    values, wide = logits.to(compute_dtype(logits)), sum_dtype(logits.device)
    positives = positive.nonzero()[:, 0]
    nothing = positives[:0]
    scores = values[positives]
    counted = positive | negative
    is_finite = bool((values.isfinite() | ~counted).all())
    if len(positives) == 0 or not is_finite:
        empty = scores[:0].to(wide)
        return Samples(positives, nothing, empty, nothing, empty, is_finite)
    order = argsort_descending(scores)
    lowest = scores.min()
    edge = torch.nextafter(lowest - delta, torch.full_like(lowest, -torch.inf))
    negatives = (negative & (values >= edge)).nonzero()[:, 0]
    negatives = negatives[argsort_descending(values[negatives])]
    q, y = -scores[order].to(wide), -values[negatives].to(wide)
    return Samples(positives, order, q, negatives, y, is_finite)
