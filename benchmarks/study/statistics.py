"""What seeds say of a loss: differences to the baseline, paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Effect:
    """A loss against the baseline, over the seeds that both have.

    Attributes:
        mean: of the loss.
        difference: mean of (loss - baseline), seed by seed.
        low, high: 95 % interval of the difference by Student's t; infinite for one seed.
        seeds: how many.
        deviation: standard deviation of the differences, NaN for one seed.
    """

    mean: float
    difference: float
    low: float
    high: float
    seeds: int
    deviation: float

    @property
    def verdict(self) -> str:
        """``+`` or ``-`` if the interval leaves out 0, else ``?``."""
        return "+" if self.low > 0 else "-" if self.high < 0 else "?"


def paired_effect(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Effect | None:
    """
    Args:
        values: seed -> measure of the loss.
        baseline: seed -> measure of the baseline.
        confidence: of the interval.

    Returns:
        None if no seed is in both, or a measure is missing in all of them.
    """
    seeds = [
        seed for seed in sorted(values.keys() & baseline.keys())
        if _is_number(values[seed]) and _is_number(baseline[seed])
    ]  # fmt: skip
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    mean, number = float(differences.mean()), len(seeds)
    deviation, half = math.nan, math.inf
    if number > 1:
        deviation = float(differences.std(ddof=1))
        half = float(stats.t.ppf((1 + confidence) / 2, number - 1)) * deviation / math.sqrt(number)
    own = float(np.mean([values[seed] for seed in seeds]))
    return Effect(own, mean, mean - half, mean + half, number, deviation)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def pooled_deviation(effects: Sequence[Effect]) -> float:
    """Standard deviation of a difference of one seed, of all losses together; NaN if unknown."""
    known = [effect for effect in effects if effect.seeds > 1]
    degrees = sum(effect.seeds - 1 for effect in known)
    if not degrees:
        return math.nan
    return math.sqrt(sum((e.seeds - 1) * e.deviation**2 for e in known) / degrees)


def power(effect: float, deviation: float, seeds: int, level: float = 0.05) -> float:
    """How probably a paired t-test of two sides finds an effect.

    Args:
        effect: true mean of the differences.
        deviation: their standard deviation.
        seeds: how many differences there are, at least two.
        level: of the test.
    """
    critical = stats.t.ppf(1 - level / 2, seeds - 1)
    shift = effect / deviation * math.sqrt(seeds)
    found = stats.nct.sf(critical, seeds - 1, shift) + stats.nct.cdf(-critical, seeds - 1, shift)
    return float(found)


def seeds_needed(
    effect: float, deviation: float, wanted: float = 0.8, level: float = 0.05, most: int = 1000
) -> int | None:
    """The fewest seeds with which the effect is found with a probability of ``wanted``.

    Args:
        effect, deviation, level: as of :func:`power`.
        wanted: power.
        most: None is returned if it takes more.
    """
    low, high = 2, most
    if not power(effect, deviation, high, level) >= wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if power(effect, deviation, middle, level) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
