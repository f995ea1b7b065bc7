"""What is checked of a loss when it is registered: its name, arguments, options and properties.

Whoever brings a loss of their own is told here, and not at the first iteration or by a key that is
missing from the config.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from corrdet.activation import ACTIVATIONS
from corrdet.names import unknown_name
from corrdet.options import (
    ANY,
    BOOL,
    NOT_NONE,
    DeclarationError,
    Key,
    Range,
    declared_options,
    parameters_of,
    shown,
)

from .weight import WEIGHT_OPTIONS

# Arguments that the Criterion gives to a loss, if it has them; all others are options.
GIVEN = ("classification", "localization", "own_class", "state")

# Where an option is declared: a function with it in its signature, or the declaration itself.
OptionSource = Callable[..., Any] | Mapping[str, Key]

# Keys of the config are these names in capitals, which two names of one loss must not share.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FORM = "small letters, digits and _, the first a letter"
# Keys of MODEL.CRITERION that are no losses, from from_config.py, which is on top of this.
OTHER_KEYS: set[str] = set()
_IN_A_CONFIG = (int, float, str, bool, list, tuple, type(None))


def check_name(what: str, name: str, reserved: Sequence[str]) -> None:
    """
    Args:
        what: the kind of loss.
        reserved: names that losses of the kind cannot have.

    Raises:
        DeclarationError: a name that no loss can have.
    """
    if not _NAME.fullmatch(name):
        raise DeclarationError(f"the name of a {what} has to be of {_FORM}, got {name!r}")
    if name.upper() in OTHER_KEYS:
        raise DeclarationError(
            f"a {what} cannot be named {name!r}: MODEL.CRITERION.{name.upper()} is another key"
        )
    if name in reserved:
        raise DeclarationError(f"a {what} cannot be named {name!r}: there is another loss_{name}")


def check_arguments(
    what: str, function: Any, given: Sequence[str], reserved: Sequence[str]
) -> list[inspect.Parameter]:
    """The options among the arguments of a function.

    Args:
        what: the loss, for messages.
        function: to be registered.
        given: what it can be given beside the batch.
        reserved: options that it cannot have.

    Raises:
        DeclarationError: the Criterion could not call it.
    """
    if not callable(function):
        raise DeclarationError(f"{what} has to be a function, got {shown(function)}")
    try:
        parameters = list(parameters_of(function).values())
    except (TypeError, ValueError) as error:
        if isinstance(error, DeclarationError):
            raise DeclarationError(f"{what}: {error}") from error
        raise DeclarationError(f"{what} has a signature that cannot be read: {error}") from error
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise DeclarationError(
            f"{what} has to take a MatchedPredictions as its first argument, got a function of "
            f"{inspect.signature(function)}"
        )
    names = [parameter.name for parameter in parameters[1:]]
    for parameter in parameters[1:]:
        problem = _problem_of_argument(parameter, given, reserved)
        if problem:
            raise DeclarationError(f"{what} cannot have an argument {str(parameter)!r}: {problem}")
    if "classification" in given and ("classification" in names) != ("localization" in names):
        one, other = ("classification", "localization")[:: 1 if "classification" in names else -1]
        raise DeclarationError(
            f"{what} has an argument {one!r} and none {other!r}: a coupling that changes losses is "
            "given both, and returns both"
        )
    return [parameter for parameter in parameters[1:] if parameter.name not in given]


def _problem_of_argument(
    parameter: inspect.Parameter, given: Sequence[str], reserved: Sequence[str]
) -> str | None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return "each of its options has to be named"
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return "options are given by name"
    if parameter.name in given:
        return None
    if parameter.name in GIVEN:
        return f"of {', '.join(GIVEN)} it can be given {' and '.join(given)} only"
    if parameter.name in reserved:
        return "all losses of its kind have an option of that name"
    if not _NAME.fullmatch(parameter.name):
        return f"an option has to be of {_FORM}"
    return None


def declared_in(
    what: str,
    arguments: Iterable[inspect.Parameter],
    function: Callable[..., Any],
    options_from: Sequence[OptionSource],
) -> dict[str, Key]:
    """The options of a function, each from where it is declared first.

    Raises:
        DeclarationError: one that is declared nowhere, or with a default that a config cannot hold.
    """
    if not isinstance(options_from, list | tuple):
        raise DeclarationError(
            f"{what}: options_from has to be a tuple of functions, got {shown(options_from)}"
        )
    try:
        sources = [
            source if isinstance(source, Mapping) else declared_options(source)
            for source in (function, *options_from)
        ]
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"{what}: {error}") from error
    options = {}
    for parameter in arguments:
        option = parameter.name
        declared = [source[option] for source in sources if option in source]
        if parameter.default is not parameter.empty and option not in sources[0]:
            declared.insert(0, Key(parameter.default, _undeclared_range(parameter)))
        declared = [key for key in declared if key.default is not parameter.empty]
        if not declared:
            raise DeclarationError(
                f"the option {option!r} of {what} needs a default, which the config takes over: "
                "give it one, or name what declares it in options_from"
            )
        options[option] = declared[0]
        if type(options[option].default) not in _IN_A_CONFIG:
            raise DeclarationError(
                f"the option {option!r} of {what} needs a default that a config can hold (a number,"
                f" text, True, False, None, or a list of these), got "
                f"{shown(options[option].default)}"
            )
    return options


def _undeclared_range(parameter: inspect.Parameter) -> Range:
    """None is a value where it is the default, in the annotation, or nothing is annotated."""
    annotation = parameter.annotation
    may_be_none = annotation is parameter.empty or re.search("None|Optional|Any", str(annotation))
    return ANY if may_be_none or parameter.default is None else NOT_NONE


def check_properties(
    what: str, properties: Mapping[str, Any], known: Iterable[str], options: Mapping[str, Key]
) -> None:
    """
    Args:
        what: the loss, for messages.
        properties: attributes of :class:`RegisteredLoss` that are given.
        known: those that a loss of its kind has.
        options: of the loss.

    Raises:
        DeclarationError: one that there is not, or a value that it cannot have.
    """
    known = [name for name in known if name not in ("function", "options")]
    ranges = {
        "activations": _some_of(ACTIVATIONS, 1),
        "needs": _some_of(("classification", "localization")),
        "weight": WEIGHT_OPTIONS["weight"].range,
        "check": Range("a function, or None", lambda v: v is None or callable(v)),
        "state_with": Range(
            f"the name of one of its options ({', '.join(options)})",
            lambda v: v == "" or (isinstance(v, str) and v in options),
        ),
        **dict.fromkeys(("definition", "use", "source", "reaches"), _TEXT),
    }
    for name, value in properties.items():
        if name not in known:
            raise DeclarationError(f"{what}: {unknown_name('property', name, known)}")
        problem = ranges.get(name, BOOL).problem(value)
        if problem:
            raise DeclarationError(f"{what}: {name}{problem}")
    check = properties.get("check")
    if check is not None:
        _check_check(what, check, {option: key.default for option, key in options.items()})


_TEXT = Range("a text", lambda v: isinstance(v, str))


def _some_of(names: Sequence[str], least: int = 0) -> Range:
    return Range(
        f"a tuple of some of {', '.join(map(repr, names))}",
        lambda v: isinstance(v, list | tuple) and len(v) >= least and all(n in names for n in v),
    )


def _check_check(what: str, check: Callable[..., None], defaults: dict[str, Any]) -> None:
    """Whether it takes all options, and their defaults go together."""
    try:
        inspect.signature(check).bind(**defaults)
    except TypeError as error:
        raise DeclarationError(
            f"{what}: its check has to take the options {', '.join(defaults)} by name: {error}"
        ) from error
    try:
        check(**defaults)
    except ValueError as error:
        raise DeclarationError(f"{what}: its check refuses the defaults: {error}") from error


def place(function: Any) -> str:
    """`` (file.py, line 12)``, where a function is; "" of what has no source."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"
