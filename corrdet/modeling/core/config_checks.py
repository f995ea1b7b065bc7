"""Checks of keys that several detectors have in common, or that nothing reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import detectron2
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import Backbone, build_backbone

from corrdet.config_keys import add_declared_keys
from corrdet.errors import ConfigError
from corrdet.names import config_value, unknown_name
from corrdet.options import Range, one_of


class _Norms(Range):
    """Names that Detectron2's versions have for norms; those of another version are refused."""

    def problem(self, value: Any) -> str | None:
        problem = super().problem(value)
        if problem is None and not _is_installed(value):
            known = ", ".join(repr(name) for name in self.names if _is_installed(name))
            problem = (
                f" is {value!r}, which Detectron2 {detectron2.__version__} does not have: expected "
                f"one of {known}"
            )
        return problem


def _is_installed(norm: str) -> bool:
    try:
        get_norm(norm, 32)
    except KeyError:
        return False
    return True


NORM = _Norms(
    **vars(one_of(("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "FrozenBN", "GN", "LN")))
)


def default_config() -> CfgNode:
    """Detectron2's and corrdet's keys, as they are where nobody has set them."""
    cfg = get_cfg()
    add_declared_keys(cfg)
    return cfg


def check_unset(cfg: CfgNode, key: str, reason: str) -> None:
    """
    Args:
        cfg: the config.
        key: full name of a node of losses.
        reason: why nothing reads it.

    Raises:
        ConfigError: it has other losses than by default.
    """
    node, default = config_value(cfg, key), config_value(default_config(), key)
    for name in ("CLASSIFICATION", "LOCALIZATION", "COUPLINGS"):
        value, unset = node[name], default[name]
        # A list from a file, a tuple as the default.
        same = list(value) == list(unset) if isinstance(unset, tuple) and value else value == unset
        if value and not same:
            raise ConfigError(f"{key}.{name} is {value!r}, but nothing reads it: {reason}")


def check_replaced_keys(
    cfg: CfgNode, theirs: str, ours: str, keys: Sequence[tuple[str, str]], owner: str
) -> None:
    """Refuse a value of Detectron2's that would do nothing, unless ours has been set as well.

    Args:
        cfg: the config.
        theirs: full name of the node with Detectron2's keys.
        ours: full name of the node of a Criterion.
        keys: (Detectron2's key, our key for the same), below these.
        owner: what takes its losses from our node, for the message.

    Raises:
        ConfigError: Detectron2's key asks for another loss than ours, which is at its default.
    """
    node: Mapping = config_value(cfg, ours)
    defaults = config_value(default_config(), ours)
    for key, replacement in keys:
        loss, _, option = replacement.partition(".")
        if option and loss.lower() not in (node["CLASSIFICATION"], node["LOCALIZATION"]):
            continue  # an option of a loss that is not used
        asked, value = config_value(cfg, theirs)[key], config_value(node, replacement)
        if asked != value and value == config_value(defaults, replacement):
            raise ConfigError(
                f"{theirs}.{key} is {asked!r}, but {owner} takes its losses from {ours}: set "
                f"{ours}.{replacement}, which is {value!r}, or {theirs}.{key} so that both say the "
                "same"
            )


def build_features(cfg: CfgNode, key: str) -> tuple[Backbone, list[ShapeSpec]]:
    """The backbone, and the shapes of those of its features that a detector reads.

    Args:
        cfg: the config.
        key: full name of the key with the names of the features.

    Raises:
        ConfigError: the backbone has no such feature.
    """
    backbone = build_backbone(cfg)
    return backbone, feature_shapes(cfg, key, backbone.output_shape())


def feature_shapes(cfg: CfgNode, key: str, outputs: Mapping[str, ShapeSpec]) -> list[ShapeSpec]:
    """The shapes of the features that a detector reads; see :func:`build_features`.

    ``outputs``: the shapes of all features, by name.
    """
    names = config_value(cfg, key)
    for name in names:
        if name not in outputs:
            raise ConfigError(f"{key}: {unknown_name('output of the backbone', name, outputs)}")
    return [outputs[name] for name in names]
