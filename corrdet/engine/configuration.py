"""Reading configurations: safely, and with messages that name what is wrong."""

import argparse
import os
from collections.abc import Iterator, Mapping

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from corrdet.config import add_corrdet_config
from corrdet.data.register import register_from_config
from corrdet.names import unknown_name

_REGISTRIES = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
)


class ConfigError(ValueError):
    """A configuration that cannot be used, with what to change."""


def load_config(args: argparse.Namespace) -> CfgNode:
    """The configuration of a command line: defaults, then the file, then ``KEY VALUE`` overrides.

    Args:
        args: with Detectron2's ``config_file`` and ``opts``.

    Returns:
        a frozen config with Detectron2's and corrdet's keys; ``DATASETS.REGISTER`` is registered.

    Raises:
        ConfigError: no such file, YAML that would run code, an unknown key or name, a value of the
            wrong type.
    """
    cfg = get_cfg()
    add_corrdet_config(cfg)
    if args.config_file:
        if "://" not in args.config_file and not os.path.isfile(args.config_file):
            raise ConfigError(f"no config file at {args.config_file!r}")
        _merge(cfg, args.config_file, lambda: cfg.merge_from_file(args.config_file, False))
    if len(args.opts) % 2:
        raise ConfigError(
            f"overrides come as KEY VALUE pairs, got an odd number of words: {' '.join(args.opts)}"
        )
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(args.opts))
    register_from_config(cfg.DATASETS.REGISTER)
    check_names(cfg)
    cfg.freeze()
    return cfg


def check_names(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: the config names a model, backbone, anchor generator or data set that does not
            exist; the message has the nearest one that does.
    """
    for key, registry in _REGISTRIES:
        name = cfg
        for part in key.split("."):
            name = name[part]
        if name not in registry:
            raise ConfigError(f"{key}: " + unknown_name("name", name, dict(iter(registry))))
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                raise ConfigError(
                    f"DATASETS.{key}: "
                    + unknown_name("data set", name, DatasetCatalog.list())
                    + " (one's own are named in DATASETS.REGISTER)"
                )


def _merge(cfg: CfgNode, source: str, merge) -> None:
    try:
        merge()
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{source} was not read: it asks for Python objects, which could run code on this "
            f"machine ({error.problem})"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    except KeyError as error:
        # yacs: "Non-existent config key: MODEL.CRITERIA"
        key = str(error.args[0]).rsplit(": ", 1)[-1]
        raise ConfigError(f"{source}: " + unknown_name("config key", key, _keys(cfg))) from error
    except (AssertionError, ValueError) as error:
        # merge_from_list only asserts that a key exists: "Non-existent key: MODEL.CRITERIA.NAME"
        message = str(error)
        if "Non-existent key" in message:
            message = unknown_name("config key", message.rsplit(": ", 1)[-1], _keys(cfg))
        raise ConfigError(f"{source}: {message}") from error


def _keys(node: Mapping, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
