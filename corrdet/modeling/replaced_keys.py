"""Detectron2's own keys for losses, where corrdet's take their place."""

from collections.abc import Mapping, Sequence

from corrdet.names import config_value


def check_replaced_keys(
    cfg, theirs: str, ours: str, keys: Sequence[tuple[str, object, str, object]], owner: str
) -> None:
    """Refuse a value of Detectron2's that would do nothing, unless ours has been set as well.

    Args:
        cfg: the config.
        theirs: full name of the node with Detectron2's keys.
        ours: full name of the node of a Criterion.
        keys: (Detectron2's key, its default, our key for the same, our default).
        owner: what takes its losses from our node, for the message.

    Raises:
        ValueError: Detectron2's key asks for another loss than ours, which is at its default.
    """
    node: Mapping = config_value(cfg, ours)
    for key, _, replacement, our_default in keys:
        loss, _, option = replacement.partition(".")
        if option and loss.lower() not in (node["CLASSIFICATION"], node["LOCALIZATION"]):
            continue  # an option of a loss that is not used
        asked, value = config_value(cfg, theirs)[key], config_value(node, replacement)
        if asked != value and value == our_default:
            raise ValueError(
                f"{theirs}.{key} is {asked!r}, but {owner} takes its losses from {ours}: set "
                f"{ours}.{replacement}, which is {value!r}, or {theirs}.{key} so that both say the "
                "same"
            )
