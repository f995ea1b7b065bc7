"""Options that users choose: default, range and one line of explanation, each said once.

A loss says them in its signature::

    def ape_loss(
        logits: Tensor,
        ...
        lam: Annotated[float, POSITIVE, "slope of the sigmoid"] = 8.0,
    ) -> Tensor:

and a detector where its constructor is, with :func:`corrdet.config.declare`. Config keys, checks
and the tables of the docs are derived from these.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from corrdet.errors import ConfigError
from corrdet.names import unknown_name


@dataclass(frozen=True)
class Range:
    """What a value may be.

    Attributes:
        expected: completes "must be ...", such as ">= 1".
        holds: whether a value is in the range; False for what is of another type.
        names: where the range is a list of names, these.
    """

    expected: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, to be put behind the name of the option; None if nothing."""
        if self.holds(value):
            return None
        if self.names and isinstance(value, str):
            return ": " + unknown_name("name", value, self.names)
        return f" must be {self.expected}, got {value!r}"

    def check(self, name: str, value: Any) -> None:
        """
        Raises:
            ValueError: the value is not in the range.
        """
        problem = self.problem(value)
        if problem:
            raise ValueError(name + problem)

    def or_none(self) -> "Range":
        """This range, and None."""
        return Range(f"{self.expected}, or None", lambda v: v is None or self.holds(v), self.names)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, and no bool."""
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no bool."""
    return not isinstance(value, bool) and isinstance(value, int)


ANY = Range("any value", lambda v: True)
BOOL = Range("True or False", lambda v: isinstance(v, bool))
NUMBER = Range("a finite number", is_number)
POSITIVE = Range("positive and finite", lambda v: is_number(v) and v > 0)
NOT_NEGATIVE = Range("finite and not negative", lambda v: is_number(v) and v >= 0)
# Open at both ends: what a sigmoid gives.
PROBABILITY = Range("in (0, 1)", lambda v: is_number(v) and 0 < v < 1)
SHARE = Range("in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)


def at_least(least: int) -> Range:
    """Whole numbers from ``least`` on."""
    return Range(f">= {least}", lambda v: is_whole(v) and v >= least)


def one_of(names: Iterable[str]) -> Range:
    """One of these names."""
    names = tuple(names)
    return Range(f"one of {', '.join(map(repr, names))}", lambda v: v in names, names)


def numbers(count: int | None = None, each: Range = POSITIVE) -> Range:
    """A list or tuple of so many numbers, each in a range."""
    many = "numbers" if count is None else f"{count} numbers"

    def holds(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) and count in (None, len(value))
        return is_list and all(map(each.holds, value))

    return Range(f"{many}, each {each.expected}", holds)


@dataclass(frozen=True)
class Key:
    """A key of the config: its default, what it may be, and one line of explanation."""

    default: Any
    range: Range = ANY
    line: str = ""

    def check(self, name: str, value: Any) -> None:
        """
        Raises:
            ConfigError: the value is not in the range.
        """
        problem = self.range.problem(value)
        if problem:
            raise ConfigError(name + problem)
