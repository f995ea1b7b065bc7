"""Options that users choose: default, range and one line of explanation, each said once.

A loss says them in its signature::

    @checked
    def ape_loss(
        logits: Tensor,
        ...
        lam: Annotated[float, POSITIVE, "slope of the sigmoid"] = 8.0,
    ) -> Tensor:

and a detector where its constructor is, with :func:`corrdet.config.declare`. Config keys, checks
and the tables of the docs are derived from these.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

from corrdet.errors import ConfigError
from corrdet.names import unknown_name

P = ParamSpec("P")
R = TypeVar("R")


class OptionError(ValueError):
    """A value that an option cannot have.

    Attributes:
        name: of the option.
        problem: what is wrong, to be put behind a name: `` must be positive, got -1``.
    """

    def __init__(self, name: str, problem: str):
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return self.name + self.problem


@dataclass(frozen=True)
class Range:
    """What a value may be.

    Attributes:
        expected: completes "must be ...", such as ">= 1".
        holds: whether a value is in the range; False for what is of another type.
        names: where the range is a list of names, these.
        numeric: whether all values are numbers, so that another type is a TypeError.
    """

    expected: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()
    numeric: bool = False

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
            OptionError: the value is not in the range.
            TypeError: it is no number, and the range is one of numbers.
        """
        problem = self.problem(value)
        if problem is None:
            return
        if self.numeric and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(name + problem)
        raise OptionError(name, problem)

    def or_none(self) -> "Range":
        """This range, and None."""
        return Range(f"{self.expected}, or None", lambda v: v is None or self.holds(v), self.names)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, and no bool."""
    # Comparisons alone: this is traced by torch.compile.
    return (
        not isinstance(value, bool)
        and isinstance(value, int | float)
        and -math.inf < value < math.inf
    )


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no bool."""
    return not isinstance(value, bool) and isinstance(value, int)


ANY = Range("any value", lambda v: True)
NOT_NONE = Range("a value", lambda v: v is not None)
BOOL = Range("True or False", lambda v: isinstance(v, bool))
NUMBER = Range("a finite number", is_number, numeric=True)
POSITIVE = Range("positive and finite", lambda v: is_number(v) and v > 0, numeric=True)
NOT_NEGATIVE = Range("finite and not negative", lambda v: is_number(v) and v >= 0, numeric=True)
# Open at both ends: what a sigmoid gives.
PROBABILITY = Range("in (0, 1)", lambda v: is_number(v) and 0 < v < 1, numeric=True)
SHARE = Range("in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1, numeric=True)
SHARE_BELOW_1 = Range("in [0, 1)", lambda v: is_number(v) and 0 <= v < 1, numeric=True)


def at_least(least: int) -> Range:
    """Whole numbers from ``least`` on."""
    return Range(f">= {least}", lambda v: is_whole(v) and v >= least, numeric=True)


def at_most(most: float) -> Range:
    """Finite numbers up to ``most``."""
    return Range(f"finite and at most {most}", lambda v: is_number(v) and v <= most, numeric=True)


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


def default_of(function: Callable[..., Any], argument: str) -> Any:
    """The default of an argument, for a key of the config that has the same."""
    return inspect.signature(function).parameters[argument].default


def declared_options(function: Callable[..., Any]) -> dict[str, Key]:
    """The options that a signature declares: parameters annotated with a range.

    Args:
        function: or a class, of which it is the constructor.

    Returns:
        by name, in their order; the default of one without is ``inspect.Parameter.empty``.

    Raises:
        ValueError: a default is out of its own range.
    """
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        said = get_args(parameter.annotation)[1:]
        ranges = [item for item in said if isinstance(item, Range)]
        if not ranges:
            continue
        line = " ".join(item for item in said if isinstance(item, str))
        options[name] = Key(parameter.default, ranges[0], line)
        if parameter.default is not inspect.Parameter.empty:
            ranges[0].check(f"the default of {name}", parameter.default)
    return options


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the declared options of a function whenever it is called.

    Those that are left at their defaults cost nothing, as they are checked here.
    :func:`torch.compile` traces the checks without a graph break.

    Raises:
        OptionError, TypeError: as :meth:`Range.check`; from the function that is returned.
    """
    ranges = {name: key.range for name, key in declared_options(function).items()}
    names = tuple(inspect.signature(function).parameters)

    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in zip(names, args, strict=False):
            if name in ranges and not ranges[name].holds(value):
                ranges[name].check(name, value)
        for name, value in kwargs.items():
            if name in ranges and not ranges[name].holds(value):
                ranges[name].check(name, value)
        return function(*args, **kwargs)

    # Code of its own: torch.compile limits how often it compiles the same code, and so all checked
    # functions together; and profiles show its name.
    code = check_and_call.__code__.replace(co_name=function.__name__)
    check_and_call.__code__ = code
    return wraps(function)(check_and_call)


def check_options(name: str, options: Mapping[str, Key], given: Mapping[str, Any]) -> None:
    """
    Args:
        name: of what has the options, for messages.
        options: that there are.
        given: values of some of them.

    Raises:
        OptionError: one that there is not, or a value out of its range; named ``<name>.<option>``.
    """
    for option, value in given.items():
        if option not in options:
            unknown = unknown_name(f"option of {name}", option, options)
            raise OptionError(f"{name}.{option}", ": " + unknown)
        problem = options[option].range.problem(value)
        if problem:
            raise OptionError(f"{name}.{option}", problem)
