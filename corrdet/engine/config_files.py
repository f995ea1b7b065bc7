"""What is wrong with a config file as a file, before its values are looked at."""

import os
from collections.abc import Mapping
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from corrdet.errors import ConfigError

_BASE = "_BASE_"
# Those of Detectron2 and corrdet have a few thousand at most.
MAX_BYTES = 1_000_000
MAX_VALUES = 100_000


def check_config_file(path: str, known: Mapping) -> None:
    """Look at a config file and at those that it is based on.

    Args:
        path: or an address that Detectron2 can read.
        known: the config that it is merged into.

    Raises:
        ConfigError: there is no such file, or one of them cannot be read, is not valid YAML or no
            mapping of keys, is empty, asks for Python objects, has a section without keys, or is
            based on itself or on an address.
    """
    if path.endswith(".py"):
        raise ConfigError(
            f"{path} is Python, perhaps a LazyConfig of Detectron2: expected a YAML file, as "
            "configs run no code (one's own modules come by --import)"
        )
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder: expected a YAML file")
    if "://" not in path and not os.path.isfile(path):
        raise ConfigError(f"no config file at {path!r}")
    _check(path, known, [])


def _check(path: str, known: Mapping, above: list[str]) -> None:
    """``above``: the files that are based on this one, the outermost first."""
    identity = path if "://" in path else os.path.realpath(path)
    if identity in above:
        chain = " -> ".join(map(os.path.basename, [*above[above.index(identity) :], identity]))
        raise ConfigError(f"{path}: its {_BASE} leads back to itself: {chain}")
    content = _read(path, above)
    if content is None:
        raise ConfigError(f"{path} is empty: expected keys such as SOLVER and MODEL")
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else type(content).__name__
        raise ConfigError(f"{path} holds a {kind}: expected keys such as SOLVER and MODEL")
    _check_sections(path, content, known)
    bases = content.get(_BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{path}: {_BASE} must be the path of a config file, got {base!r}")
        if "://" in base:
            raise ConfigError(
                f"{path}: {_BASE} is the address {base}, and what is there can change: expected a "
                "file on this machine"
            )
        _check(_resolve(base, path), known, [*above, identity])


def _read(path: str, above: list[str]) -> Any:
    """The content of a file, which is YAML without objects."""
    try:
        if "://" not in path and os.path.getsize(path) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES} bytes: it is no config file")
        with PathManager.open(path, "r") as file:
            content = yaml.safe_load(file)
        if _is_larger(content):
            raise ConfigError(f"{path} has more than {MAX_VALUES} values, perhaps by anchors")
        return content
    except ConfigError:
        raise
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path} was not read: it asks for Python objects, which could run code on this "
            f"machine ({error.problem})"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_in_a_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid YAML: brackets in brackets, too deep") from error
    except Exception as error:  # of many types, by the kind of address
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        by = f", the {_BASE} of {above[-1]}," if above else ""
        raise ConfigError(f"{path}{by} was not read: {reason or type(error).__name__}") from error


def _is_larger(content: Any) -> bool:
    """Whether there are more than MAX_VALUES values, each counted as often as it is referred to."""
    waiting, count = [content], 0
    while waiting and count <= MAX_VALUES:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return count > MAX_VALUES


def _in_a_line(error: yaml.YAMLError) -> str:
    """``line 3, column 5: expected ..., but found ...``."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = ", ".join(
        part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part
    )
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}"


def _check_sections(path: str, content: dict, known: Mapping, prefix: str = "") -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: {prefix}{key!r} is no text: expected the name of a key")
        section = known.get(key)
        if isinstance(section, Mapping) and section:
            if not isinstance(value, dict):
                example = f"{prefix}{key}.{next(iter(section))}"
                raise ConfigError(
                    f"{path}: {prefix}{key}: expected keys below it, such as {example}, got {value}"
                )
            _check_sections(path, value, section, f"{prefix}{key}.")


def _resolve(base: str, path: str) -> str:
    """As fvcore does: relative to the file that names it."""
    base = os.path.expanduser(base)
    if base.startswith("/"):
        return base
    return os.path.join(os.path.dirname(path), base)
