"""The weight of a coupling, which may change during a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from corrdet.options import (
    NOT_NEGATIVE,
    Key,
    OptionError,
    Range,
    at_least,
    declared_options,
    is_number,
    is_whole,
    plain,
)


def _is_schedule(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    for point in value:
        if not isinstance(point, list | tuple) or len(point) != 2:
            return False
        iteration, factor = point
        if not (is_whole(iteration) and iteration >= 0 and is_number(factor) and factor >= 0):
            return False
    iterations = [iteration for iteration, _ in value]
    return sorted(set(iterations)) == iterations


SCHEDULE = Range(
    "pairs of an iteration and a factor, both >= 0 and the iterations ascending, such as "
    "((0, 1.0), (5000, 0.5))",
    _is_schedule,
)


@dataclass(frozen=True)
class Weight:
    """The weight of a coupling over the iterations of a training.

    Attributes:
        value: the weight.
        warmup_iters: it rises linearly from 0 over so many iterations.
        schedule: (iteration, factor) pairs, ascending; the weight is multiplied by the factor,
            which is linear between them and constant before the first and after the last.

    Raises:
        OptionError: a value that is negative or not finite, or a schedule of another form.
    """

    value: Annotated[
        float,
        NOT_NEGATIVE,
        "factor of the loss; of a coupling that changes the other losses by how much, 0 not at all",
    ] = 1.0
    warmup_iters: Annotated[
        int, at_least(0), "the weight rises linearly from 0 over so many iterations"
    ] = 0
    schedule: Annotated[
        Sequence[tuple[int, float]],
        SCHEDULE,
        "(iteration, factor) pairs; the weight is multiplied by the factor, linear between them",
    ] = ()

    def __post_init__(self):
        for name, key in WEIGHT_OPTIONS.items():
            key.range.check(name, getattr(self, _FIELDS[name]))

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Weight":
        """The weight of :data:`WEIGHT_OPTIONS`."""
        return cls(**{_FIELDS[name]: value for name, value in options.items()})

    @property
    def is_constant(self) -> bool:
        """Whether it is the same at every iteration."""
        return not self.warmup_iters and not self.schedule

    def at(self, iteration: int) -> float:
        """The weight at an iteration, from 0."""
        factor = min(1.0, iteration / self.warmup_iters) if self.warmup_iters else 1.0
        return self.value * factor * self._scheduled(iteration)

    def _scheduled(self, iteration: int) -> float:
        before = [point for point in self.schedule if point[0] <= iteration]
        after = [point for point in self.schedule if point[0] > iteration]
        if not before or not after:
            return before[-1][1] if before else after[0][1] if after else 1.0
        (start, first), (end, last) = before[-1], after[0]
        return first + (last - first) * (iteration - start) / (end - start)


# What options of a coupling they are: the weight itself is the option "weight".
_FIELDS = {
    "weight" if field == "value" else field: field for field in declared_options(Weight)
}  # fmt: skip
# Every coupling has them beside its own options.
WEIGHT_OPTIONS: dict[str, Key] = {
    name: declared_options(Weight)[field] for name, field in _FIELDS.items()
}


def as_weight(name: str, weight: float | Weight) -> Weight:
    """A constant as one, checked; the errors name the coupling.

    Raises:
        OptionError: it is out of its range.
    """
    if isinstance(weight, Weight):
        return weight
    try:
        return Weight(plain(weight))
    except OptionError as error:
        raise type(error)(f"{name}.{error.name}", error.problem) from error
