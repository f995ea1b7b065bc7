"""Keys of the config, each declared beside the code that reads it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from corrdet.names import config_value
from corrdet.options import Key

# Full name of a node, such as "MODEL.ATSS" -> its keys, and what they are about.
SECTIONS: dict[str, dict[str, Key]] = {}
ABOUT: dict[str, str] = {}
# Sections that are known when a config is made: those of losses, which users register.
LATER: list[Callable[[], Mapping[str, Mapping[str, Key]]]] = []


def declare(section: str, about: str = "", **keys: Key) -> dict[str, Key]:
    """Declare keys of the config, beside the code that reads them.

    :func:`corrdet.add_corrdet_config` adds them, :func:`check_keys` checks their ranges, and
    ``make docs-tables`` lists them.

    Args:
        section: full name of the node, such as ``MODEL.ATSS``; it may be one of Detectron2's.
        about: a line on the section, such as the paper it is of.
        keys: by name.

    Returns:
        the keys.

    Raises:
        ValueError: one is declared already.
    """
    known = SECTIONS.setdefault(section, {})
    for name, key in keys.items():
        if name in known:
            raise ValueError(f"{section}.{name} is declared already")
        known[name] = key
    if about:
        ABOUT[section] = about
    return keys


def check_keys(cfg: Mapping[str, Any], *sections: str) -> None:
    """
    Raises:
        ConfigError: a value of these sections is out of its range; the message starts with its key.
    """
    for section in sections:
        node = config_value(cfg, section)
        for name, key in SECTIONS[section].items():
            key.check(f"{section}.{name}", node[name])


def add_declared_keys(cfg) -> None:
    """Add the keys that are declared so far, and those of the registered losses, in place.

    Args:
        cfg (CfgNode): the result of ``detectron2.config.get_cfg()``.
    """
    from detectron2.config import CfgNode as CN

    for sections in (SECTIONS, *(later() for later in LATER)):
        for section, keys in sections.items():
            node = cfg
            for name in section.split("."):
                node = node.setdefault(name, CN())
            for name, key in keys.items():
                node[name] = copy.deepcopy(key.default)
