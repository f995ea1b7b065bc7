"""The Criterion: one classification loss, one localization loss and couplings, found by name.

A loss that the Criterion can use is a function of a :class:`MatchedPredictions` and keyword
options, registered under a name:

* a classification loss returns one value per sample, (S,), 0 for ignored ones; the Criterion sums
  them and divides by the normalizer. Or, registered with ``per_sample=False``, the loss itself. If
  it has an argument ``localization``, it is given the localization loss of each positive, and
  returns the classification and the localization loss itself;
* a localization loss returns one value per positive, (P,), or is registered with
  ``per_sample=False``, likewise;
* a coupling returns one value per positive, which is summed and divided by the normalizer, or a
  scalar, which is added as it is. If it has arguments ``classification`` and ``localization``, it
  is given the two losses of each positive, and returns what is to take their place.

A loss with an argument ``state`` is given a dict of its own, in which it may keep tensors, lists
and numbers from step to step.

In a config, the options of the loss ``some_loss`` are the keys of ``MODEL.CRITERION.SOME_LOSS``,
with the function's defaults; couplings have ``WEIGHT``, ``WARMUP_ITERS`` and ``SCHEDULE`` as well.
Losses that are registered before :func:`corrdet.add_corrdet_config` is called get these keys by
themselves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from corrdet.names import unknown_name

from .matched_predictions import MatchedPredictions
from .registry import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    LossRegistry,
    RegisteredLoss,
    refusal,
)

WEIGHTED_BY = ("none", "iou", "score")

# Keys of a coupling that are no options of its function, and their defaults.
COUPLING_KEYS = {"WEIGHT": 1.0, "WARMUP_ITERS": 0, "SCHEDULE": ()}


@dataclass(frozen=True)
class Weight:
    """The weight of a coupling over the iterations of a training.

    Attributes:
        value: the weight.
        warmup_iters: it rises linearly from 0 over so many iterations.
        schedule: (iteration, factor) pairs, ascending; the weight is multiplied by the factor,
            which is linear between them and constant before the first and after the last.

    Raises:
        ValueError: a value or factor that is negative or not finite, or a schedule of another form.
    """

    value: float = 1.0
    warmup_iters: int = 0
    schedule: Sequence[tuple[int, float]] = ()

    def __post_init__(self):
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"the weight must be finite and >= 0, got {self.value}")
        if not isinstance(self.warmup_iters, int) or self.warmup_iters < 0:
            raise ValueError(
                f"the warm-up must be a number of iterations, 0 or more, got {self.warmup_iters!r}"
            )
        for point in self.schedule:
            if not (
                isinstance(point, tuple | list)
                and len(point) == 2
                and isinstance(point[0], int)
                and all(isinstance(value, int | float) and value >= 0 for value in point)
                and math.isfinite(point[1])
            ):
                raise ValueError(
                    "the schedule must be pairs of an iteration and a factor, both >= 0, such as "
                    f"((0, 1.0), (5000, 0.5)), got {tuple(self.schedule)!r}"
                )
        iterations = [iteration for iteration, _ in self.schedule]
        if sorted(set(iterations)) != iterations:
            raise ValueError(f"the schedule's iterations must ascend, got {iterations}")

    @property
    def is_constant(self) -> bool:
        return not self.warmup_iters and not self.schedule

    def at(self, iteration: int) -> float:
        """The weight at an iteration, from 0."""
        factor = min(1.0, iteration / self.warmup_iters) if self.warmup_iters else 1.0
        return self.value * factor * self._scheduled(iteration)

    def _scheduled(self, iteration: int) -> float:
        before = [point for point in self.schedule if point[0] <= iteration]
        after = [point for point in self.schedule if point[0] > iteration]
        if not before or not after:
            return before[-1][1] if before else after[0][1] if after else 1.0
        (start, first), (end, last) = before[-1], after[0]
        return first + (last - first) * (iteration - start) / (end - start)


class Criterion(nn.Module):
    """The losses of one training step, each under a name.

    Functions are those of the registries, with their options bound; see the module.

    Args:
        classification: name of a registered classification loss.
        localization: name of a registered localization loss.
        couplings: names, or name -> weight, a number or a :class:`Weight`.
        options: of each loss, by its name.
        classification_weight: factor of ``loss_cls``.
        localization_weight: factor of ``loss_box_reg``.
        localization_weighted_by: "iou" or "score": the localization loss of each positive is
            weighted by its IoU or by its score, divided by the mean of these over the positives;
            "none": it is not.

    Raises:
        ValueError: an unknown name, losses that cannot be composed, or a value out of range.
    """

    def __init__(
        self,
        classification: str,
        localization: str,
        couplings: Sequence[str] | Mapping[str, float | Weight] = (),
        options: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006  (never written to)
        *,
        classification_weight: float = 1.0,
        localization_weight: float = 1.0,
        localization_weighted_by: str = "none",
    ):
        if isinstance(couplings, str):
            raise ValueError(f"couplings must be a list of names, got the text {couplings!r}")
        if not isinstance(couplings, Mapping):
            if len(set(couplings)) != len(couplings):
                raise ValueError(f"couplings name one twice: {list(couplings)}")
            couplings = dict.fromkeys(couplings, 1.0)
        reason = refusal(classification, localization, list(couplings))
        if reason:
            raise ValueError(reason)
        for name in options:
            if name not in (classification, localization, *couplings):
                used = [classification, localization, *couplings]
                raise ValueError("options: " + unknown_name("loss", name, used))
        weights = {"classification": classification_weight, "localization": localization_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name} must be finite and >= 0, got {weight}")
        if localization_weighted_by not in WEIGHTED_BY:
            raise ValueError(
                unknown_name("weight", localization_weighted_by, WEIGHTED_BY)
                + " (the localization loss is weighted by)"
            )
        if localization_weighted_by != "none" and not LOCALIZATION_LOSSES[localization].per_sample:
            raise ValueError(
                f"the localization loss {localization!r} cannot be weighted by "
                f"{localization_weighted_by}: it is one sum over all positives"
            )
        super().__init__()
        self.classification_weight = classification_weight
        self.localization_weight = localization_weight
        self.localization_weighted_by = localization_weighted_by
        self._state: dict[str, dict] = {}
        self._classification = CLASSIFICATION_LOSSES[classification]
        self._localization = LOCALIZATION_LOSSES[localization]
        self._losses_by_name = {
            classification: self._classification,
            localization: self._localization,
            **{name: COUPLINGS[name] for name in couplings},
        }
        self.classification = self._bind(classification, self._classification, options)
        self.localization = self._bind(localization, self._localization, options)
        self.couplings: dict[str, tuple[Callable, Weight]] = {}
        for name, weight in couplings.items():
            weight = weight if isinstance(weight, Weight) else Weight(float(weight))
            self.couplings[name] = self._bind(name, COUPLINGS[name], options), weight

    def _bind(self, name: str, loss: RegisteredLoss, options: Mapping) -> Callable:
        given = dict(options.get(name, {}))
        for option in given:
            if option not in loss.options:
                raise ValueError(unknown_name(f"option of {name}", option, loss.options))
        if loss.check is not None:
            loss.check(**{**loss.options, **given})
        if loss.has_state:
            given["state"] = self._state[name] = {}
        return partial(loss.function, **given)

    def forward(
        self,
        matched: MatchedPredictions,
        normalizer: float | Tensor | None = None,
        iteration: int | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            matched: the batch.
            normalizer: what sums over samples are divided by. None for the number of positives of
                this batch, at least 1.
            iteration: of the training, from 0; needed where a weight has a warm-up or a schedule.

        Returns:
            ``loss_cls``, ``loss_box_reg`` and, of each coupling that adds a loss,
            ``loss_<coupling>``: scalars, float32 even under autocast, weighted, and attached to the
            graph also where there is no positive.

        Raises:
            ValueError: a weight changes over the iterations, and none is given; a loss that cannot
                work with this head, or with a batch without deltas; or a loss of one's own that
                returns something else than it should.
        """
        return self.losses_and_factors(matched, normalizer, iteration)[0]

    def losses_and_factors(
        self,
        matched: MatchedPredictions,
        normalizer: float | Tensor | None = None,
        iteration: int | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses, and what is only looked at; arguments and errors as of calling it.

        Returns:
            the losses; and by how much each coupling that changes them has multiplied those of the
            positives, (P,) without gradient, such as ``harmonic_localization``.
        """
        for name, loss in self._losses_by_name.items():
            if matched.activation not in loss.activations:
                raise ValueError(
                    f"{name!r} works on {' or '.join(loss.activations)} heads, got "
                    f"MatchedPredictions of a {matched.activation} head"
                )
            if loss.needs_deltas and (matched.deltas is None or matched.gt_deltas is None):
                raise ValueError(
                    f"{name!r} compares box deltas, got MatchedPredictions without deltas and "
                    "gt_deltas"
                )
        if normalizer is None:
            normalizer = max(len(matched.positives), 1)
        with torch.autocast(matched.logits.device.type, enabled=False):
            return self._losses(matched, normalizer, iteration)

    def _losses(
        self, matched: MatchedPredictions, normalizer: float | Tensor, iteration: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        samples, positives = (len(matched.labels),), (len(matched.positives),)
        localization = self._localization_loss(matched, positives)
        if self._classification.takes_localization:
            both = self.classification(matched, localization=localization)
            classification, localization = _two("classification loss", self.classification, both)
            _check_shape("classification loss", self.classification, classification, ())
            _check_shape("classification loss", self.classification, localization, (), positives)
        else:
            classification = self.classification(matched)
            shape = samples if self._classification.per_sample else ()
            _check_shape("classification loss", self.classification, classification, shape)

        added, factors = {}, {}
        for name, (coupling, weight) in self.couplings.items():
            factor = self._factor(name, weight, iteration)
            if COUPLINGS[name].takes_localization:
                classification, localization, changed = self._coupled(
                    name, factor, matched, classification, localization
                )
                factors |= changed
            else:
                loss = coupling(matched)
                _check_shape("coupling", coupling, loss, (), positives)
                added[f"loss_{name}"] = _total(loss, normalizer) * factor
        losses = {
            "loss_cls": _total(classification, normalizer) * self.classification_weight,
            "loss_box_reg": _total(localization, normalizer) * self.localization_weight,
            **added,
        }
        return losses, factors

    def _localization_loss(self, matched: MatchedPredictions, positives: tuple) -> Tensor:
        losses = self.localization(matched)
        shape = positives if self._localization.per_sample else ()
        _check_shape("localization loss", self.localization, losses, shape)
        return self._weighted(matched, losses)

    def _weighted(self, matched: MatchedPredictions, losses: Tensor) -> Tensor:
        if self.localization_weighted_by == "none":
            return losses
        weights = matched.ious if self.localization_weighted_by == "iou" else matched.scores
        weights = weights.detach()
        # Their mean over the positives is 1; all 0 leave nothing to weight.
        return losses * weights * (len(weights) / weights.sum().clamp(min=1e-6))

    def _coupled(
        self,
        name: str,
        factor: float,
        matched: MatchedPredictions,
        classification: Tensor,
        localization: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The losses with what the coupling makes of those of the positives in their place.

        Third, by how much it has multiplied them, by name.
        """
        per_sample = classification.dim() > 0
        of_positives = classification[matched.positives] if per_sample else classification
        coupling = self.couplings[name][0]
        coupled = coupling(matched, classification=of_positives, localization=localization)
        coupled = _two("coupling", coupling, coupled)
        for old, new in zip((of_positives, localization), coupled, strict=True):
            _check_shape("coupling", coupling, new, tuple(old.shape))
        new_classification, new_localization = (
            # By how far the coupling is switched on.
            new if factor == 1 else old + factor * (new - old)
            for old, new in zip((of_positives, localization), coupled, strict=True)
        )
        factors = {
            f"{name}_{part}": _ratio(old, new)
            for part, old, new in (
                ("classification", of_positives, new_classification),
                ("localization", localization, new_localization),
            )
            if new is not old and old.dim() > 0
        }
        if per_sample:
            new_classification = classification.index_put((matched.positives,), new_classification)
        return new_classification, new_localization, factors

    @staticmethod
    def _factor(name: str, weight: Weight, iteration: int | None) -> float:
        if weight.is_constant:
            return weight.value
        if iteration is None:
            raise ValueError(
                f"the weight of {name} changes over the iterations: call the criterion with the "
                "iteration"
            )
        return weight.at(iteration)

    # What losses keep from step to step is in checkpoints as parameters are, under
    # ``state.<loss>.<name>``, lists with a number behind it. A training that has just begun has
    # none, and so have other losses' checkpoints: neither is an error.

    def restore(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on with the states of losses, by their names; others are left as they are."""
        for loss, state in states.items():
            if loss in self._state:
                self._state[loss].update(state)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for loss, state in self._state.items():
            for name, value in state.items():
                if isinstance(value, list):
                    entries = {f"{name}.{index}": item for index, item in enumerate(value)}
                else:
                    entries = {name: value}
                for key, item in entries.items():
                    destination[f"{prefix}state.{loss}.{key}"] = torch.as_tensor(item)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for loss, state in self._state.items():
            state.clear()
            start = f"{prefix}state.{loss}."
            lists: dict[str, dict[int, Tensor]] = {}
            for key in [key for key in state_dict if key.startswith(start)]:
                name, _, index = key.removeprefix(start).partition(".")
                if index:
                    lists.setdefault(name, {})[int(index)] = state_dict[key]
                else:
                    state[name] = state_dict[key]
            for name, items in lists.items():
                state[name] = [items[index] for index in sorted(items)]


def _total(losses: Tensor, normalizer: float | Tensor) -> Tensor:
    return losses if losses.dim() == 0 else losses.sum() / normalizer


def _ratio(old: Tensor, new: Tensor) -> Tensor:
    """By how much a loss has been multiplied, without gradient; 1 where it was 0."""
    old, new = old.detach(), new.detach()
    is_zero = old == 0
    return torch.where(is_zero, 1.0, new / torch.where(is_zero, 1.0, old))


def _check_shape(what: str, function: Callable, value: Any, *shapes: tuple) -> None:
    """Raise a ValueError unless a loss returned a tensor of one of the shapes."""
    if isinstance(value, Tensor) and tuple(value.shape) in shapes:
        return
    expected = " or ".join(f"a tensor of shape {shape}" for shape in shapes)
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    function = getattr(function, "func", function)
    raise ValueError(f"the {what} {function.__name__!r} must return {expected}, got {got}")


def _two(what: str, function: Callable, value: Any) -> tuple:
    """Raise a ValueError unless a loss returned a classification and a localization loss."""
    if isinstance(value, tuple) and len(value) == 2:
        return value
    function = getattr(function, "func", function)
    raise ValueError(
        f"the {what} {function.__name__!r} must return (classification, localization), got "
        f"{type(value).__name__}"
    )


def build_criterion(
    cfg, *, activation: str, has_deltas: bool, key: str = "CRITERION", owner: str | None = None
) -> Criterion:
    """The Criterion that a config's ``MODEL.CRITERION`` describes.

    Args:
        cfg: a config with :func:`corrdet.add_corrdet_config`'s keys.
        activation: "sigmoid" or "softmax", what the detector's head is made for.
        has_deltas: whether the detector regresses deltas.
        key: of the node in ``MODEL``.
        owner: whose losses they are, for messages; None for the meta-architecture.

    Raises:
        ValueError: an unknown loss (with the nearest valid name), an option that the loss does not
            have or a value that it cannot have, losses that cannot be composed, or one that cannot
            work with the detector; the message starts with the config's key.
    """
    node, path = cfg.MODEL[key], f"MODEL.{key}"
    owner = owner or cfg.MODEL.META_ARCHITECTURE
    for name in ("CLASSIFICATION_WEIGHT", "LOCALIZATION_WEIGHT", "COUPLINGS"):
        if node[name] is None:
            raise ValueError(f"{path}.{name} must have a value, got None")
    couplings = list(node.COUPLINGS)
    chosen = [
        ("CLASSIFICATION", CLASSIFICATION_LOSSES, node.CLASSIFICATION),
        ("LOCALIZATION", LOCALIZATION_LOSSES, node.LOCALIZATION),
        *(("COUPLINGS", COUPLINGS, name) for name in couplings),
    ]
    options, weights = {}, {}
    for kind, registry, name in chosen:
        loss = _usable(f"{path}.{kind}", registry, name, activation, has_deltas, owner)
        given = dict(node.get(name.upper(), {}))
        if registry is COUPLINGS:
            values = {key: given.pop(key, default) for key, default in COUPLING_KEYS.items()}
            for key, value in values.items():
                if value is None:
                    raise ValueError(f"{path}.{name.upper()}.{key} must have a value, got None")
            with _ErrorsNaming(f"{path}.{name.upper()}"):
                weights[name] = Weight(
                    float(values["WEIGHT"]), values["WARMUP_ITERS"], tuple(values["SCHEDULE"])
                )
        options[name] = {option.lower(): value for option, value in given.items()}
        for option in options[name]:
            if option not in loss.options:
                raise ValueError(
                    f"{path}.{name.upper()}.{option.upper()}: "
                    + unknown_name(f"option of {name}", option, loss.options)
                )
            if options[name][option] is None and not loss.may_be_none(option):
                raise ValueError(
                    f"{path}.{name.upper()}.{option.upper()} must have a value, got None"
                )
        if loss.check is not None:
            with _ErrorsNaming(f"{path}.{name.upper()}"):
                loss.check(**{**loss.options, **options[name]})
    if len(set(couplings)) != len(couplings):
        raise ValueError(f"{path}.COUPLINGS names one twice: {couplings}")
    with _ErrorsNaming(path):
        return Criterion(
            node.CLASSIFICATION,
            node.LOCALIZATION,
            weights,
            options,
            classification_weight=node.CLASSIFICATION_WEIGHT,
            localization_weight=node.LOCALIZATION_WEIGHT,
            localization_weighted_by=node.LOCALIZATION_WEIGHTED_BY,
        )


def _usable(
    key: str, registry: LossRegistry, name: str, activation: str, has_deltas: bool, owner: str
) -> RegisteredLoss:
    """The loss of that name, if the detector can be trained with it."""
    if not isinstance(name, str):
        raise ValueError(f"{key}: expected the name of a {registry.what}, got {name!r}")
    for other in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        if name not in registry and name in other:
            raise ValueError(f"{key}: {name!r} is a {other.what}, expected a {registry.what}")
    with _ErrorsNaming(key):
        loss = registry[name]
    if activation not in loss.activations:
        raise ValueError(
            f"{key}: the {registry.what} {name!r} works on {' or '.join(loss.activations)} heads, "
            f"but {owner} has a {activation} head"
        )
    if loss.needs_deltas and not has_deltas:
        raise ValueError(
            f"{key}: the {registry.what} {name!r} compares box deltas, which {owner} does not "
            "regress; use an IoU loss"
        )
    return loss


class _ErrorsNaming:
    """Puts a config's key in front of the message of a ValueError."""

    def __init__(self, key: str):
        self._key = key

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, ValueError):
            raise ValueError(f"{self._key}: {error}") from error
