"""The losses on the step H: csrc/step_error in tensors.

As a function of a logit the sums over pairs are piecewise linear: in descending order of logits all
that a positive needs are two positions and prefix sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import compute_dtype
from .._operators import operator
from .samples import Samples, check_count, read_samples
from .sorting_errors import sorting_errors
from .step_sums import StepSums
from .sums import prefix_sums, searchsorted, total

# The largest logit, in units of delta, beside which s_u - delta is told from s_u well enough; as in
# csrc/step_error/near_position.h, where it is said how larger ones are brought near.
FAR = 2.0**20


class Ranking(NamedTuple):
    """How negatives and other positives rank each positive, (P,) in ascending order of q."""

    scores: Tensor  # the coordinates as they came, whose ties are told
    q: Tensor  # coordinates, brought near
    values: Tensor  # IoUs for rank_sort, localization losses for alrp
    false_positives: Tensor
    true_positives: Tensor
    negatives: Tensor  # how many have H > 0
    delta: float

    @property
    def rank(self) -> Tensor:
        return self.true_positives + self.false_positives

    @property
    def precision(self) -> Tensor:
        return self.true_positives / self.rank


class Error(NamedTuple):
    """The loss, and the share of H by which each positive's pairs are moved."""

    value: Tensor
    shares: Tensor  # (P,)
    second: Tensor | float = 0.0
    second_gradient: Tensor | None = None  # (P,) of the positives' logits
    on_localization: Tensor | None = None  # (P,)


def mean(values: Tensor) -> Tensor:
    return total(values) / len(values)


def average_precision(ranking: Ranking) -> Error:
    precision, rank = ranking.precision, ranking.rank
    interpolated = precision.flip(0).cummax(0).values.flip(0)
    raised = interpolated > precision
    scale = torch.where(raised, (1 - interpolated) / torch.where(raised, 1 - precision, 1), 1)
    return Error(1 - mean(interpolated), scale / rank)


def step(ranking: Ranking) -> Error:
    return Error(mean(ranking.false_positives / ranking.rank), 1 / ranking.rank)


def step_negatives(ranking: Ranking) -> Error:
    shares = torch.where(ranking.negatives > 0, 1 / ranking.negatives.clamp(min=1), 0)
    return Error(mean(ranking.false_positives * shares), shares)


def rank_sort(ranking: Ranking) -> Error:
    errors, gradient = sorting_errors(ranking.q, ranking.values, ranking.delta)
    return step(ranking)._replace(second=mean(errors), second_gradient=gradient / len(gradient))


def alrp(ranking: Ranking) -> Error:
    scores, losses, rank = ranking.scores, ranking.values, ranking.rank
    # Equal scores count each other.
    above = prefix_sums(losses)[searchsorted(scores, scores, right=True)]
    inverse = prefix_sums((1 / rank).flip(0))
    below = len(scores) - searchsorted(scores, scores)
    others = StepSums(ranking.q, ranking.delta, losses).over(ranking.q) - 0.5 * losses
    some = (ranking.negatives > 0) & (ranking.false_positives > 0)
    wrong = torch.where(some, ranking.false_positives, 1)
    shares = torch.where(some, (wrong + others) / (rank * wrong), 0)
    return Error(
        1 - mean(ranking.precision), shares, mean(above / rank),
        on_localization=inverse[below] / len(scores),
    )  # fmt: skip


ERRORS = {
    "average_precision": average_precision,
    "step": step,
    "step_negatives": step_negatives,
    "rank_sort": rank_sort,
    "alrp": alrp,
}


def bring_near(q: Tensor, y: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Coordinates near 0 with the same H, from any finite ones; y may be above all q alone.

    Gaps between positives are at most 4 delta, and what is between two or beyond all of them as far
    from the nearest as it was, but at most 2 delta.
    """
    gaps = torch.diff(q).clamp(max=4 * delta)
    positions = prefix_sums(gaps)
    number = searchsorted(q, y, right=True)
    before, after = (number - 1).clamp(min=0), number.clamp(max=len(q) - 1)
    up = torch.where(number > 0, y - q[before], torch.inf)
    down = torch.where(number < len(q), q[after] - y, torch.inf)
    from_before = positions[before] + up.clamp(max=2 * delta)
    from_after = positions[after] - down.clamp(max=2 * delta)
    return positions, torch.where(up <= down, from_before, from_after)


def rank_positives(samples: Samples, values: Tensor, delta: float, itself: float):
    """How the positives are ranked, and the sums over negatives."""
    q, y = samples.q, samples.y
    if bool(q.abs().max() > FAR * delta):
        q, y = bring_near(q, y, delta)
    else:
        # H is 1 beyond delta: what is above all is as good nearer.
        y = y.clamp(min=q[0] - 2 * delta)
    negatives = StepSums(y, delta)
    return Ranking(
        samples.q,
        q,
        values,
        negatives.over(q),
        StepSums(q, delta).over(q) - 0.5 + itself,
        negatives.window(q)[1].to(q.dtype),
        delta,
    ), negatives


@operator(
    "step_error(Tensor logits, Tensor targets, str loss, float delta, Tensor? localization)"
    " -> (Tensor values, Tensor gradients, Tensor localization_gradient)"
)
def step_error(
    logits: Tensor, targets: Tensor, loss: str, delta: float, localization: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    is_soft = loss == "rank_sort"
    samples = read_samples(logits, targets, is_soft, delta)
    count, dtype = len(samples.positives), compute_dtype(logits)
    if localization is not None:
        check_count("localization", localization, count)
    numbers = 0 if localization is None else count
    values = logits.new_zeros(2, dtype=dtype)
    gradients = logits.new_zeros((2 if is_soft else 1, len(logits)), dtype=dtype)
    on_localization = logits.new_zeros(numbers, dtype=dtype)
    results = values, gradients, on_localization
    if count == 0:
        return results
    if not samples.is_finite:
        for result in results:
            result.fill_(torch.nan)
        return results

    per_positive = targets[samples.positives] if localization is None else localization
    per_positive = per_positive.to(samples.q.dtype)[samples.order]
    ranking, negatives = rank_positives(samples, per_positive, delta, 0.5 if is_soft else 1.0)
    error = ERRORS[loss](ranking)
    values[0], values[1] = error.value, error.second
    shares = error.shares / count
    ordered = samples.positives[samples.order]
    gradients[0, samples.negatives] = negatives.gradient(ranking.q, shares, dtype)
    gradients[0, ordered] = (-shares * ranking.false_positives).to(dtype)
    if error.second_gradient is not None:
        gradients[1, ordered] = error.second_gradient.to(dtype)
    if error.on_localization is not None:
        on_localization[samples.order] = error.on_localization.to(dtype)
    return results
