"""What is wrong with a config file as a file, before its values are looked at."""

import os
from collections.abc import Mapping

import yaml
from detectron2.utils.file_io import PathManager

from corrdet.errors import ConfigError

_BASE = "_BASE_"


def check_config_file(path: str, known: Mapping) -> None:
    """Look at a config file and at those that it is based on.

    Args:
        path: or an address that Detectron2 can read.
        known: the config that it is merged into.

    Raises:
        ConfigError: there is no such file, or one of them is no mapping of keys, is empty, has a
            section without keys, or is based on itself.
        OSError, yaml.YAMLError, UnicodeDecodeError: a file cannot be read.
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
    with PathManager.open(path, "r") as file:
        content = yaml.safe_load(file)
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
        _check(_resolve(base, path), known, [*above, identity])


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
    if base.startswith(("/", "https://", "http://")):
        return base
    return os.path.join(os.path.dirname(path), base)
