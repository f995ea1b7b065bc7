"""From a config to a Criterion: the keys that there are, and the losses that they ask for."""

from dataclasses import replace

from corrdet.config_keys import LATER
from corrdet.errors import ConfigError
from corrdet.options import Key, OptionError, Range

from .criterion import COMPOSITION_OPTIONS, Criterion
from .declaration import OTHER_KEYS
from .registry import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    REGISTRIES,
    LossRegistry,
    distinct_names,
    find_loss,
)
from .weight import WEIGHT_OPTIONS, Weight

# The nodes of Criterions in MODEL, what they are of, and their default classification loss. Both
# have all keys, as both may be used with options of their own.
CRITERIA = {
    "CRITERION": ("the losses of the detector", "sigmoid_focal"),
    "RPN_CRITERION": ("the losses of the region proposals of CorrdetRPN", "sigmoid_cross_entropy"),
}


def criterion_sections() -> dict[str, dict[str, Key]]:
    """The keys of all Criterions, with those of every loss that is registered now.

    Returns:
        full name of the node, such as ``MODEL.CRITERION.APE`` -> its keys.
    """
    sections: dict[str, dict[str, Key]] = {}
    for node, (_, classification) in CRITERIA.items():
        sections[f"MODEL.{node}"] = _composition_keys(classification)
        for registry in REGISTRIES:
            for name, loss in registry.items():
                keys = sections.setdefault(f"MODEL.{node}.{name.upper()}", {})
                keys |= {option.upper(): key for option, key in loss.options.items()}
                if registry is COUPLINGS:
                    keys |= coupling_keys(name)
    return sections


def coupling_keys(name: str) -> dict[str, Key]:
    """The keys of a coupling that are no options of its function."""
    keys = {option.upper(): key for option, key in WEIGHT_OPTIONS.items()}
    return {**keys, "WEIGHT": replace(keys["WEIGHT"], default=COUPLINGS[name].weight)}


def _composition_keys(classification: str) -> dict[str, Key]:
    return {
        "CLASSIFICATION": Key(classification, _name_in(CLASSIFICATION_LOSSES), "it has `loss_cls`"),
        "LOCALIZATION": Key("smooth_l1", _name_in(LOCALIZATION_LOSSES), "it has `loss_box_reg`"),
        "COUPLINGS": Key((), _NAMES_OF_COUPLINGS, 'such as `("correlation",)`'),
        **{option.upper(): key for option, key in COMPOSITION_OPTIONS.items()},
    }


def _name_in(registry: LossRegistry) -> Range:
    return Range(f"the name of a {registry.what}", lambda v: v in registry)


_NAMES_OF_COUPLINGS = Range(
    "a list of names of couplings",
    lambda v: isinstance(v, list | tuple) and all(name in COUPLINGS for name in v),
)

OTHER_KEYS.update(_composition_keys(""))
LATER.append(criterion_sections)


def build_criterion(
    cfg,
    *,
    activation: str,
    has_deltas: bool,
    has_priors: bool = True,
    has_levels: bool = False,
    key: str = "CRITERION",
    owner: str | None = None,
    activation_key: str | None = None,
) -> Criterion:
    """The Criterion that a config's ``MODEL.CRITERION`` describes.

    Args:
        cfg: a config with :func:`corrdet.add_corrdet_config`'s keys.
        activation: "sigmoid" or "softmax", what the detector's head is made for.
        has_deltas: whether the detector regresses deltas.
        has_priors: whether it has priors, of whose centres centerness is.
        has_levels: whether its positives are on levels of a pyramid.
        key: of the node in ``MODEL``.
        owner: whose losses they are, for messages; None for the meta-architecture.
        activation_key: full name of the key that could say another activation, for messages.

    Raises:
        ConfigError: an unknown loss (with the nearest valid name), an option that the loss does not
            have or a value that it cannot have, losses that cannot be composed, or one that cannot
            work with the detector; the message starts with the config's key.
    """
    node, path = cfg.MODEL[key], f"MODEL.{key}"
    owner = owner or cfg.MODEL.META_ARCHITECTURE
    try:
        couplings = distinct_names(node.COUPLINGS)
        _check_usable(node, couplings, activation, has_deltas, owner, activation_key)
        if node.LOCALIZATION_WEIGHTED_BY == "centerness" and not has_priors:
            raise OptionError(
                "localization_weighted_by",
                f": centerness is of the centres of priors, which {owner} does not have; use 'iou' "
                "or 'score'",
            )
        if "correlation" in couplings and node.CORRELATION.OVER == "level" and not has_levels:
            raise OptionError(
                "correlation.over",
                f": the positives of {owner} are on no levels of a pyramid; use 'batch' or 'image'",
            )
        options, weights = {}, {}
        for name in (node.CLASSIFICATION, node.LOCALIZATION, *couplings):
            options[name] = {
                key.lower(): value for key, value in node.get(name.upper(), {}).items()
            }
        for name in couplings:
            weights[name] = _weight(name, options[name])
        return Criterion(
            node.CLASSIFICATION,
            node.LOCALIZATION,
            weights,
            options,
            **{option: node[option.upper()] for option in COMPOSITION_OPTIONS},
        )
    except OptionError as error:
        where = f"{path}.{error.name.upper()}" if error.name else f"{path}: "
        raise ConfigError(where + error.problem) from error


def _weight(name: str, options: dict) -> Weight:
    """The weight of a coupling; takes its options out of the others."""
    given = {option: options.pop(option) for option in WEIGHT_OPTIONS if option in options}
    try:
        return Weight.from_options({"weight": COUPLINGS[name].weight, **given})
    except OptionError as error:
        raise OptionError(f"{name}.{error.name}", error.problem) from error


def _check_usable(
    node,
    couplings: list[str],
    activation: str,
    has_deltas: bool,
    owner: str,
    activation_key: str | None,
) -> None:
    """
    Raises:
        OptionError: an unknown loss, or one that the detector cannot be trained with.
    """
    for argument, registry, name in (
        ("classification", CLASSIFICATION_LOSSES, node.CLASSIFICATION),
        ("localization", LOCALIZATION_LOSSES, node.LOCALIZATION),
        *(("couplings", COUPLINGS, name) for name in couplings),
    ):
        loss = find_loss(argument, registry, name)
        if activation not in loss.activations:
            raise OptionError(
                argument,
                f": the {registry.what} {name!r} works on {' or '.join(loss.activations)} heads, "
                f"but {owner} has a {activation} head"
                + (f": set {activation_key} to {loss.activations[0]!r}" if activation_key else ""),
            )
        if loss.needs_deltas and not has_deltas:
            raise OptionError(
                argument,
                f": the {registry.what} {name!r} compares box deltas, which {owner} does not "
                "regress; use an IoU loss",
            )
