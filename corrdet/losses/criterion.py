"""The Criterion: one classification loss, one localization loss and couplings, found by name.

A loss that the Criterion can use is a function of a :class:`MatchedPredictions` and keyword
options, registered under a name:

* a classification loss returns one value per sample, (S,), 0 for ignored ones; the Criterion sums
  them and divides by the normalizer;
* a localization loss returns one value per positive, (P,), treated likewise;
* a coupling returns a scalar that is added as it is.

In a config, the options of the loss ``some_loss`` are the keys of ``MODEL.CRITERION.SOME_LOSS``,
with the function's defaults; couplings have ``WEIGHT`` as well. Losses that are registered before
:func:`corrdet.add_corrdet_config` is called get these keys by themselves.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from corrdet.names import unknown_name

from .correlation import check_correlation_options, correlation_loss
from .focal import sigmoid_focal_loss
from .localization import giou_loss, smooth_l1_loss
from .matched_predictions import MatchedPredictions

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class RegisteredLoss:
    """A loss function and what it needs.

    Attributes:
        function: called as ``function(matched, **options)``.
        activations: the heads it can work with, of "sigmoid" and "softmax".
        needs_deltas: whether it reads MatchedPredictions.deltas.
        check: called as ``check(**options)`` with all options before training starts; raises a
            ValueError for values that the loss cannot work with. None: any will do.
    """

    function: Loss
    activations: tuple[str, ...]
    needs_deltas: bool
    check: Callable[..., None] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The function's keyword arguments and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


class LossRegistry(Mapping[str, RegisteredLoss]):
    """Losses of one kind by name. ``what`` is the kind, for messages."""

    def __init__(self, what: str):
        self.what = what
        self._losses: dict[str, RegisteredLoss] = {}

    def register(
        self,
        name: str,
        *,
        activations: Sequence[str] = ("sigmoid", "softmax"),
        needs_deltas: bool = False,
        check: Callable[..., None] | None = None,
    ) -> Callable[[Loss], Loss]:
        """A decorator that registers a function; see :class:`RegisteredLoss` for the arguments.

        Raises:
            ValueError: the name is taken, or an option has no default.
        """

        def add(function: Loss) -> Loss:
            if name in self._losses:
                raise ValueError(f"there already is a {self.what} named {name!r}")
            loss = RegisteredLoss(function, tuple(activations), needs_deltas, check)
            for option, default in loss.options.items():
                if default is inspect.Parameter.empty:
                    raise ValueError(
                        f"the option {option!r} of the {self.what} {name!r} needs a default, which "
                        "the config takes over"
                    )
            self._losses[name] = loss
            return function

        return add

    def __getitem__(self, name: str) -> RegisteredLoss:
        if name not in self._losses:
            # Not a KeyError: that would print the message quoted.
            raise ValueError(unknown_name(self.what, name, self._losses))
        return self._losses[name]

    def __contains__(self, name: object) -> bool:
        return name in self._losses

    def __iter__(self):
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)


CLASSIFICATION_LOSSES = LossRegistry("classification loss")
LOCALIZATION_LOSSES = LossRegistry("localization loss")
COUPLINGS = LossRegistry("coupling")


class Criterion:
    """The losses of one training step, each under a name.

    Args:
        classification: function of a MatchedPredictions, (S,).
        localization: function of a MatchedPredictions, (P,).
        couplings: name -> (function of a MatchedPredictions to a scalar, weight).
        classification_weight: factor of ``loss_cls``.
        localization_weight: factor of ``loss_box_reg``.
    """

    def __init__(
        self,
        classification: Loss,
        localization: Loss,
        couplings: Mapping[str, tuple[Loss, float]] = {},  # noqa: B006  (never written to)
        *,
        classification_weight: float = 1.0,
        localization_weight: float = 1.0,
    ):
        weights = {"classification": classification_weight, "localization": localization_weight}
        weights.update({name: weight for name, (_, weight) in couplings.items()})
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} must be finite and >= 0, got {weight}")
        self.classification = classification
        self.localization = localization
        self.couplings = dict(couplings)
        self.classification_weight = classification_weight
        self.localization_weight = localization_weight

    def __call__(self, matched: MatchedPredictions) -> dict[str, Tensor]:
        """
        Returns:
            ``loss_cls``, ``loss_box_reg`` and ``loss_<coupling>``: scalars, float32 even under
            autocast, weighted, and attached to the graph also where there is no positive.
        """
        with torch.autocast(matched.logits.device.type, enabled=False):
            losses = {
                "loss_cls": self.classification(matched).sum()
                / matched.normalizer
                * self.classification_weight,
                "loss_box_reg": self.localization(matched).sum()
                / matched.normalizer
                * self.localization_weight,
            }
            for name, (coupling, weight) in self.couplings.items():
                losses[f"loss_{name}"] = coupling(matched) * weight
        return losses


def build_criterion(cfg, *, activation: str, has_deltas: bool) -> Criterion:
    """The Criterion that a config's ``MODEL.CRITERION`` describes.

    Args:
        cfg: a config with :func:`corrdet.add_corrdet_config`'s keys.
        activation: "sigmoid" or "softmax", what the detector's head is made for.
        has_deltas: whether the detector regresses deltas.

    Raises:
        ValueError: an unknown loss (with the nearest valid name), an option that the loss does not
            have or a value that it cannot have, or a loss that cannot work with the detector; the
            message starts with the config's key.
    """
    node = cfg.MODEL.CRITERION

    def build(key: str, registry: LossRegistry, name: str, skip: Sequence[str] = ()) -> Loss:
        key = f"MODEL.CRITERION.{key}"
        if name not in registry:
            raise ValueError(f"{key}: " + unknown_name(registry.what, name, registry))
        loss = registry[name]
        if activation not in loss.activations:
            raise ValueError(
                f"{key}: the {registry.what} {name!r} works on "
                f"{' or '.join(loss.activations)} heads, but {cfg.MODEL.META_ARCHITECTURE} has "
                f"a {activation} head"
            )
        if loss.needs_deltas and not has_deltas:
            raise ValueError(
                f"{key}: the {registry.what} {name!r} compares box deltas, which "
                f"{cfg.MODEL.META_ARCHITECTURE} does not regress; use an IoU loss"
            )
        options = {
            key.lower(): value
            for key, value in node.get(name.upper(), {}).items()
            if key not in skip
        }
        for option in options:
            if option not in loss.options:
                raise ValueError(
                    f"MODEL.CRITERION.{name.upper()}.{option.upper()}: "
                    + unknown_name(f"option of {name}", option, loss.options)
                )
        if loss.check is not None:
            try:
                loss.check(**{**loss.options, **options})
            except ValueError as error:
                raise ValueError(f"MODEL.CRITERION.{name.upper()}: {error}") from error
        return partial(loss.function, **options)

    names = list(node.COUPLINGS)
    if len(set(names)) != len(names):
        raise ValueError(f"MODEL.CRITERION.COUPLINGS names one twice: {names}")
    couplings = {
        name: (
            build("COUPLINGS", COUPLINGS, name, skip=("WEIGHT",)),
            float(node.get(name.upper(), {}).get("WEIGHT", 1.0)),
        )
        for name in names
    }
    classification = build("CLASSIFICATION", CLASSIFICATION_LOSSES, node.CLASSIFICATION)
    localization = build("LOCALIZATION", LOCALIZATION_LOSSES, node.LOCALIZATION)
    try:
        return Criterion(
            classification,
            localization,
            couplings,
            classification_weight=node.CLASSIFICATION_WEIGHT,
            localization_weight=node.LOCALIZATION_WEIGHT,
        )
    except ValueError as error:
        raise ValueError(f"MODEL.CRITERION: {error}") from error


@CLASSIFICATION_LOSSES.register("sigmoid_focal", activations=("sigmoid",))
def _sigmoid_focal(
    matched: MatchedPredictions, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    targets = torch.zeros_like(matched.logits)
    targets[matched.positives, matched.classes] = 1
    loss = sigmoid_focal_loss(matched.logits, targets, alpha=alpha, gamma=gamma).sum(dim=1)
    return loss * (matched.labels >= 0)


def _check_smooth_l1(*, beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")


@LOCALIZATION_LOSSES.register("smooth_l1", needs_deltas=True, check=_check_smooth_l1)
def _smooth_l1(matched: MatchedPredictions, *, beta: float = 0.0) -> Tensor:
    return smooth_l1_loss(matched.deltas, matched.gt_deltas, beta=beta).sum(dim=1)


@LOCALIZATION_LOSSES.register("giou")
def _giou(matched: MatchedPredictions) -> Tensor:
    return giou_loss(matched.boxes, matched.gt_boxes)


@COUPLINGS.register("correlation", check=check_correlation_options)
def _correlation(
    matched: MatchedPredictions, *, coefficient: str = "concordance", strength=None
) -> Tensor:
    return correlation_loss(
        matched.scores, matched.ious, coefficient=coefficient, strength=strength
    )
