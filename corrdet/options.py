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
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np

from corrdet.errors import ConfigError, CorrdetError
from corrdet.names import unknown_name

P = ParamSpec("P")
R = TypeVar("R")


class OptionError(ValueError):
    """A value that an option cannot have.

    Attributes:
        name: of the option.
        problem: what is wrong, to be put behind a name: `` must be a finite number > 0, got -1``.
    """

    def __init__(self, name: str, problem: str):
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return self.name + self.problem


class OptionTypeError(OptionError, TypeError):
    """A value of a type that an option cannot have."""


class DeclarationError(CorrdetError, ValueError):
    """A function whose options or registration cannot be used: what was expected and what came."""


@dataclass(frozen=True)
class Range:
    """What a value may be.

    Attributes:
        expected: completes "must be ...", such as "a whole number >= 1".
        holds: whether a value is in the range; False for what is of another type.
        names: where the range is a list of names, these.
        has_type: whether a value is of the right type, so that another one is a TypeError.
        among_its_type: what is said of a value of the right type, such as ">= 1".
    """

    expected: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()
    has_type: Callable[[Any], bool] = lambda value: True
    among_its_type: str = ""

    def __repr__(self) -> str:
        # As help() shows it, in the annotation of an argument: Annotated[float, > 0, 'slope'].
        return self.among_its_type or self.expected

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, to be put behind the name of the option; None if nothing."""
        if self.holds(value):
            return None
        if self.names and isinstance(value, str):
            return ": " + unknown_name("name", value, self.names)
        expected = self.expected
        if self.among_its_type and (is_whole(value) or _is_float(value)) and self.has_type(value):
            expected = self.among_its_type
        return f" must be {expected}, got {shown(value)}"

    def error(self, name: str, value: Any) -> OptionError | None:
        """What is wrong with a value of an option; None if nothing."""
        problem = self.problem(value)
        if problem is None:
            return None
        return (OptionError if self.has_type(value) else OptionTypeError)(name, problem)

    def check(self, name: str, value: Any) -> None:
        """
        Raises:
            OptionError: the value is not in the range; a TypeError, too, if its type is wrong.
        """
        error = self.error(name, value)
        if error:
            raise error

    def or_none(self) -> "Range":
        """This range, and None."""
        return Range(
            f"{self.expected}, or None",
            lambda v: v is None or self.holds(v),
            self.names,
            lambda v: v is None or self.has_type(v),
            self.among_its_type and f"{self.among_its_type}, or None",
        )


def shown(value: Any) -> str:
    """A value for a message: one line, and not a long one."""
    if isinstance(value, int) and value.bit_length() > 63:
        # Python itself refuses to write out what has more than 4300 digits.
        digits = int(value.bit_length() * math.log10(2)) + 1
        return f"an integer of {digits} digits, more than 64 bits can hold"
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:100]}... ({type(value).__name__})"


_REAL = (int, float, np.integer, np.floating)
_WHOLE = (int, np.integer)
_LARGEST = sys.float_info.max


def is_real(value: Any) -> bool:
    """Whether it is an int or float of Python or NumPy, and no bool."""
    return isinstance(value, _REAL) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float of Python or NumPy, and no bool."""
    # Comparisons alone: this is traced by torch.compile.
    return is_real(value) and -_LARGEST <= plain(value) <= _LARGEST


def is_whole(value: Any) -> bool:
    """Whether it is an int of Python or NumPy that 64 bits can hold, and no bool."""
    return is_real(value) and isinstance(value, _WHOLE) and -(2**63) <= plain(value) < 2**63


def _is_float(value: Any) -> bool:
    return is_number(value) and not isinstance(value, _WHOLE)


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _numbers(among_them: str, holds: Callable[[Any], bool], kind: str = "finite number") -> Range:
    return Range(
        f"a {kind} {among_them}".rstrip(),
        lambda v: is_number(v) and holds(v),
        has_type=is_real,
        among_its_type=among_them,
    )


ANY = Range("any value", lambda v: True)
NOT_NONE = Range("any value but None", lambda v: v is not None)
BOOL = Range("True or False", lambda v: isinstance(v, bool), has_type=lambda v: isinstance(v, bool))
NUMBER = _numbers("", lambda v: True)
POSITIVE = _numbers("> 0", lambda v: v > 0)
NOT_NEGATIVE = _numbers(">= 0", lambda v: v >= 0)
# Open at both ends: what a sigmoid gives.
PROBABILITY = _numbers("in (0, 1)", lambda v: 0 < v < 1, "number")
SHARE = _numbers("in [0, 1]", lambda v: 0 <= v <= 1, "number")
SHARE_BELOW_1 = _numbers("in [0, 1)", lambda v: 0 <= v < 1, "number")


def at_least(least: int) -> Range:
    """Whole numbers from ``least`` on."""
    return Range(
        f"a whole number >= {least}",
        lambda v: is_whole(v) and v >= least,
        has_type=lambda v: is_real(v) and isinstance(v, _WHOLE),
        among_its_type=f">= {least}",
    )


def at_most(most: float) -> Range:
    """Finite numbers up to ``most``."""
    return _numbers(f"<= {most}", lambda v: v <= most)


def one_of(names: Iterable[str]) -> Range:
    """One of these names."""
    names = tuple(names)
    return Range(
        f"one of {', '.join(map(repr, names))}",
        lambda v: isinstance(v, str) and v in names,
        names,
        lambda v: isinstance(v, str),
    )


def numbers(count: int | None = None, each: Range = POSITIVE) -> Range:
    """A list or tuple of so many numbers, each in a range."""
    many = "numbers" if count is None else f"{count} numbers"

    def is_list(value: Any) -> bool:
        return isinstance(value, list | tuple)

    return Range(
        f"a list of {many}, each {each.expected}",
        lambda v: is_list(v) and count in (None, len(v)) and all(map(each.holds, v)),
        has_type=is_list,
    )


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


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a function, by name.

    Annotations are what they stand for, also in a module that has them as text (``from __future__
    import annotations``).

    Raises:
        DeclarationError: a range in an annotation that cannot be read.
    """
    parameters = dict(inspect.signature(function).parameters)
    namespace = getattr(inspect.unwrap(function), "__globals__", None)
    if namespace is None:
        namespace = vars(inspect.getmodule(function) or inspect)
    for name, parameter in parameters.items():
        if not isinstance(parameter.annotation, str):
            continue
        try:
            annotation = eval(parameter.annotation, namespace)
        except Exception as error:
            if "Annotated" in parameter.annotation:
                raise DeclarationError(
                    f"the annotation of {name} cannot be read where the module is imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            continue  # of a name for type checkers alone
        parameters[name] = parameter.replace(annotation=annotation)
    return parameters


def declared_options(function: Callable[..., Any]) -> dict[str, Key]:
    """The options that a signature declares: parameters annotated with a range.

    Args:
        function: or a class, of which it is the constructor.

    Returns:
        by name, in their order; the default of one without is ``inspect.Parameter.empty``.

    Raises:
        DeclarationError: a default is out of its own range.
    """
    options = {}
    for name, parameter in parameters_of(function).items():
        said = get_args(parameter.annotation)[1:]
        ranges = [item for item in said if isinstance(item, Range)]
        if not ranges:
            continue
        line = " ".join(item for item in said if isinstance(item, str))
        options[name] = Key(parameter.default, ranges[0], line)
        if parameter.default is not inspect.Parameter.empty:
            problem = ranges[0].problem(parameter.default)
            if problem:
                called = getattr(function, "__qualname__", shown(function))
                raise DeclarationError(f"{called}: the default of {name}{problem}")
    return options


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the declared options of a function whenever it is called.

    Those that are left at their defaults cost nothing, as they are checked here.
    :func:`torch.compile` traces the checks without a graph break. Numbers of NumPy come to the
    function as Python's.

    Raises:
        OptionError: as :meth:`Range.check`; from the function that is returned.
    """
    ranges = {name: key.range for name, key in declared_options(function).items()}
    names = tuple(inspect.signature(function).parameters)

    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in zip(names, args, strict=False):
            if name in ranges:
                if not ranges[name].holds(value):
                    ranges[name].check(name, value)
                if isinstance(value, np.generic):
                    args = tuple(map(plain, args))  # type: ignore[assignment]
        for name, value in kwargs.items():
            if name in ranges:
                if not ranges[name].holds(value):
                    ranges[name].check(name, value)
                if isinstance(value, np.generic):
                    kwargs[name] = value.item()
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
    if not isinstance(given, Mapping):
        raise OptionTypeError(name, f": expected its options by name, got {shown(given)}")
    for option, value in given.items():
        if option not in options:
            unknown = unknown_name(f"option of {name}", option, options)
            raise OptionError(f"{name}.{option}", ": " + unknown)
        options[option].range.check(f"{name}.{option}", value)
