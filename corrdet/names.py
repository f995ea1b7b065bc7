"""Values by their full names, and error messages for names that do not exist."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def config_value(cfg: Mapping, key: str) -> Any:
    """The value of a key such as ``MODEL.RETINANET.NUM_CLASSES``.

    Raises:
        KeyError: there is no such key.
    """
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def unknown_name(what: str, name: object, valid: Iterable[str]) -> str:
    """A message such as ``unknown coupling 'corelation'; did you mean 'correlation'?``.

    Args:
        what: the kind of thing, for example "coupling".
        name: what was asked for; of any type, as it comes from users.
        valid: the names that exist.
    """
    valid = sorted(valid)
    near = get_close_matches(str(name), valid, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    if len(valid) > 30:
        return f"unknown {what} {name!r}"
    return f"unknown {what} {name!r}; there are: {', '.join(valid) or 'none'}"


def kind_of(value: object) -> str:
    """The type of a value for a message: ``an int``, ``a list``."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def function_of(method: Any) -> Any:
    """The function behind a method of a class; one that is static, or put there, is it itself."""
    return getattr(method, "__func__", method)
