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
  is given the two losses of each positive, and returns what is to take their place. With an
  argument ``own_class`` it is given a function of no arguments as well, to the part of the
  classification losses that is of each positive's own class, (P,); of losses that are sums over
  classes.

A loss with an argument ``state`` is given a dict of its own, in which it may keep tensors and lists
of tensors from step to step.

In a config, the options of the loss ``some_loss`` are the keys of ``MODEL.CRITERION.SOME_LOSS``,
with the declared defaults; couplings have ``WEIGHT``, ``WARMUP_ITERS`` and ``SCHEDULE`` as well.
Losses that are registered before :func:`corrdet.add_corrdet_config` is called get these keys by
themselves.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from corrdet.names import unknown_name
from corrdet.options import (
    NOT_NEGATIVE,
    POSITIVE,
    Key,
    OptionError,
    OptionTypeError,
    at_least,
    check_options,
    declared_options,
    one_of,
    plain,
    shown,
)

from ._state import KeepsStates
from .global_batch import mean_over_processes
from .matched_predictions import MatchedPredictions
from .registry import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    RegisteredLoss,
    distinct_names,
    find_loss,
    refusal,
)
from .weight import Weight, as_weight

# Batches without a positive, one after the other, after which it is said.
PATIENCE = 100
NO_POSITIVES = (
    f"no sample of the last {PATIENCE} batches is a positive: localization, ranking and coupling "
    "losses are 0, and nothing is learned of the objects. Look at the annotations (are there any, "
    "boxes as XYXY in pixels of the resized image, classes from 0 to the number of classes - 1), "
    "at the sizes of anchors beside those of objects, and at the IoU from which on they match"
)


class PositivesWatch:
    """Counts the batches of a training that have no positive, and warns once.

    The losses of none are 0, which looks like success.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._is_over = False
        self._iteration: int | None = None

    def see(self, num_positives: int, iteration: int | None = None) -> None:
        """
        Args:
            num_positives: of the next batch.
            iteration: of the training, where it is known: several calls, as of the layers of a
                decoder, may be of one batch.
        """
        if self._is_over or torch.compiler.is_compiling():
            return
        is_new = iteration is None or iteration != self._iteration
        self._iteration = iteration
        self._in_a_row = 0 if num_positives else self._in_a_row + is_new
        if self._in_a_row >= PATIENCE:
            self._is_over = True
            warnings.warn(NO_POSITIVES, stacklevel=2)


@dataclass
class BoundLoss:
    """A loss with its options, and what it keeps from step to step.

    Attributes:
        name: that it is registered under.
        loss: from a registry.
        options: all of them.
        state: of a loss that has one.
    """

    name: str
    loss: RegisteredLoss
    options: dict[str, Any]
    state: dict[str, Any]

    @property
    def keeps_state(self) -> bool:
        """Whether there is something to keep, with these options."""
        switch = self.loss.state_with
        return self.loss.has_state and not (switch and not self.options[switch])

    def __call__(self, matched: MatchedPredictions, **losses: Any) -> Any:
        state = {"state": self.state} if self.loss.has_state else {}
        return self.loss.function(matched, **self.options, **state, **losses)


class Criterion(KeepsStates):
    """The losses of one training step, each under a name.

    Args:
        classification: name of a registered classification loss.
        localization: name of a registered localization loss.
        couplings: names, or name -> weight, a number or a :class:`Weight`; names alone have the
            weights that they are registered with, of most 1.
        options: of each loss, by its name.
        classification_weight: factor of ``loss_cls``.
        localization_weight: factor of ``loss_box_reg``.
        localization_weighted_by: "iou", "score" or "centerness": the localization loss of each
            positive is weighted by its IoU, its score, or how near the centre of its prior is to
            that of its ground truth, and the sum is divided by that of the weights, averaged over
            the processes (ATSS, FCOS; PAA; APE paper, Sec. 7); "none": it is not.

    Raises:
        OptionError: a ValueError: an unknown name, losses that cannot be composed, or a value out
            of range.
    """

    def __init__(
        self,
        classification: str,
        localization: str,
        couplings: Sequence[str] | Mapping[str, float | Weight] = (),
        options: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006  (never written to)
        *,
        classification_weight: Annotated[float, NOT_NEGATIVE, "factor of `loss_cls`"] = 1.0,
        localization_weight: Annotated[float, NOT_NEGATIVE, "factor of `loss_box_reg`"] = 1.0,
        localization_weighted_by: Annotated[
            str,
            one_of(("none", "iou", "score", "centerness")),
            "what weights the localization loss of each positive, whose sum is then divided by "
            "that of the weights",
        ] = "none",
    ):
        super().__init__()
        self.classification_weight = classification_weight
        self.localization_weight = localization_weight
        self.localization_weighted_by = localization_weighted_by
        for name, key in COMPOSITION_OPTIONS.items():
            key.range.check(name, getattr(self, name))

        losses = {
            classification: find_loss("classification", CLASSIFICATION_LOSSES, classification),
            localization: find_loss("localization", LOCALIZATION_LOSSES, localization),
        }
        names = distinct_names(couplings)
        for name in names:
            losses[name] = find_loss("couplings", COUPLINGS, name)
        if not isinstance(options, Mapping):
            raise OptionTypeError(
                "options", f': expected {{"<loss>": {{"<option>": value}}}}, got {shown(options)}'
            )
        for name in options:
            if name not in losses:
                raise OptionError("options", ": " + unknown_name("loss", name, losses))
        self._losses = {
            name: _bind(name, loss, options.get(name, {})) for name, loss in losses.items()
        }
        reason = refusal(classification, localization, names)
        if reason:
            raise OptionError("", reason)
        if localization_weighted_by != "none" and not losses[localization].per_sample:
            raise OptionError(
                "localization_weighted_by",
                f": the localization loss {localization!r} cannot be weighted by "
                f"{localization_weighted_by}: it is one sum over all positives",
            )
        if localization_weighted_by != "none" and losses[classification].weights_positives:
            raise OptionError(
                "localization_weighted_by",
                f" must be 'none' with {classification!r}, which weights the localization loss of "
                f"each positive itself, got {localization_weighted_by!r}",
            )
        self.classification = self._losses[classification]
        self.localization = self._losses[localization]
        self.couplings = {name: self._losses[name] for name in names}
        self.coupling_weights = {
            name: as_weight(
                name, couplings[name] if isinstance(couplings, Mapping) else losses[name].weight
            )
            for name in names
        }
        self._watch = PositivesWatch()

    def forward(
        self,
        matched: MatchedPredictions,
        normalizer: float | Tensor | None = None,
        iteration: int | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            matched: the batch.
            normalizer: what sums over samples are divided by, a positive number or a tensor of
                shape (), of which the value is not looked at. None for the number of positives of
                this batch, at least 1.
            iteration: of the training, from 0; needed where a weight has a warm-up or a schedule.

        Returns:
            ``loss_cls``, ``loss_box_reg`` and, of each coupling that adds a loss,
            ``loss_<coupling>``: scalars, float32 even under autocast, weighted, and attached to the
            graph also where there is no positive.

        Raises:
            ValueError: a weight changes over the iterations, and none is given; a normalizer or an
                iteration that is none; a loss that cannot work with this head, or with a batch
                without deltas; or a loss of one's own that returns something else than it should.
            TypeError: no MatchedPredictions.
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
        _check_arguments(matched, normalizer, iteration)
        for name, bound in self._losses.items():
            if matched.activation not in bound.loss.activations:
                raise ValueError(
                    f"{name!r} works on {' or '.join(bound.loss.activations)} heads, got "
                    f"MatchedPredictions of a {matched.activation} head"
                )
            if bound.loss.needs_deltas and (matched.deltas is None or matched.gt_deltas is None):
                raise ValueError(
                    f"{name!r} compares box deltas, got MatchedPredictions without deltas and "
                    "gt_deltas"
                )
        if self.localization_weighted_by == "centerness" and matched.priors is None:
            raise ValueError(
                "localization_weighted_by 'centerness' is of the centres of priors, got "
                "MatchedPredictions without priors"
            )
        normalizer = max(len(matched.positives), 1) if normalizer is None else normalizer
        if self.training:
            self._watch.see(len(matched.positives), iteration)
        with torch.autocast(matched.logits.device.type, enabled=False):
            return self._losses_and_factors(matched, normalizer, iteration)

    def _losses_and_factors(
        self, matched: MatchedPredictions, normalizer: float | Tensor, iteration: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        classification, localization, divisor = self._classification_and_localization(
            matched, normalizer
        )
        added: dict[str, Tensor] = {}
        factors: dict[str, Tensor] = {}
        for name, coupling in self.couplings.items():
            weight = self._weight_at(name, iteration)
            if coupling.loss.takes_localization:
                classification, localization, changed = self._coupled(
                    name, weight, matched, classification, localization
                )
                factors |= changed
            else:
                loss = coupling(matched)
                _check_shape("coupling", coupling, loss, (), (len(matched.positives),))
                added[f"loss_{name}"] = _total(loss, normalizer) * weight
        losses = {
            "loss_cls": _total(classification, normalizer) * self.classification_weight,
            "loss_box_reg": _total(localization, divisor) * self.localization_weight,
            **added,
        }
        return losses, factors

    def _classification_and_localization(
        self, matched: MatchedPredictions, normalizer: float | Tensor
    ) -> tuple[Tensor, Tensor, float | Tensor]:
        """(S,) and (P,) losses, scalars of those that are not per sample; the second's divisor."""
        samples, positives = (len(matched.labels),), (len(matched.positives),)
        localization = self.localization(matched)
        shape = positives if self.localization.loss.per_sample else ()
        _check_shape("localization loss", self.localization, localization, shape)
        localization, divisor = self._weighted(matched, localization, normalizer)
        if not self.classification.loss.takes_localization:
            classification = self.classification(matched)
            shape = samples if self.classification.loss.per_sample else ()
            _check_shape("classification loss", self.classification, classification, shape)
            return classification, localization, divisor
        both = self.classification(matched, localization=localization)
        classification, localization = _two("classification loss", self.classification, both)
        _check_shape("classification loss", self.classification, classification, ())
        _check_shape("classification loss", self.classification, localization, (), positives)
        return classification, localization, divisor

    def _weighted(
        self, matched: MatchedPredictions, losses: Tensor, normalizer: float | Tensor
    ) -> tuple[Tensor, float | Tensor]:
        """Localization losses by weights with a mean of 1, and what their sum is divided by.

        Means are over all processes. The divisor is the number of positives, so that the loss is
        the weighted sum over the sum of weights, whatever the other losses are divided by.
        """
        if self.localization_weighted_by == "none":
            return losses, normalizer
        by = {"iou": "ious", "score": "scores", "centerness": "centerness"}
        weights = getattr(matched, by[self.localization_weighted_by]).detach()
        count = torch.full((), float(len(weights)), dtype=weights.dtype, device=weights.device)
        total, count = mean_over_processes(torch.stack([weights.sum(), count]))
        # Weights that are all 0 leave nothing, and neither do no positives.
        return losses * weights * (count / total.clamp(min=1e-6)), count.clamp(min=1e-6)

    def _coupled(
        self,
        name: str,
        weight: float,
        matched: MatchedPredictions,
        classification: Tensor,
        localization: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The losses with what the coupling makes of those of the positives in their place.

        Third, by how much it has multiplied them, by name.
        """
        per_sample = classification.dim() > 0
        positives_classification = (
            classification[matched.positives] if per_sample else classification
        )
        coupling = self.couplings[name]
        losses: dict[str, Any] = {
            "classification": positives_classification,
            "localization": localization,
        }
        if coupling.loss.takes_own_class:
            losses["own_class"] = partial(self._own_class, matched, positives_classification)
        coupled = coupling(matched, **losses)
        coupled = _two("coupling", coupling, coupled)
        before = positives_classification, localization
        after = []
        for old, new in zip(before, coupled, strict=True):
            _check_shape("coupling", coupling, new, tuple(old.shape))
            # By how far the coupling is switched on.
            after.append(new if weight == 1 else old + weight * (new - old))
        factors = {
            f"{name}_{part}": _ratio(old, new)
            for part, old, new in zip(
                ("classification", "localization"), before, after, strict=True
            )
            if new is not old and old.dim() > 0
        }
        new_classification, new_localization = after
        if per_sample:
            new_classification = classification.index_put((matched.positives,), new_classification)
        return new_classification, new_localization, factors

    def _own_class(self, matched: MatchedPredictions, classification: Tensor) -> Tensor:
        """(P,) the classification loss of positives at their own class."""
        if matched.activation == "softmax":
            return classification
        # As of a detector of one class.
        classes = matched.classes
        own = replace(
            matched,
            logits=matched.logits[matched.positives].gather(1, classes[:, None]),
            labels=torch.zeros_like(classes),
            positives=torch.arange(len(classes), device=classes.device),
        )
        return self.classification(own)

    def _weight_at(self, name: str, iteration: int | None) -> float:
        weight = self.coupling_weights[name]
        if weight.is_constant:
            return weight.value
        if iteration is None:
            raise ValueError(
                f"the weight of {name} changes over the iterations: call the criterion with the "
                "iteration"
            )
        return weight.at(iteration)


# What the config has beside the names of the losses and their own options.
COMPOSITION_OPTIONS: dict[str, Key] = declared_options(Criterion)


def _bind(name: str, loss: RegisteredLoss, given: Mapping[str, Any]) -> BoundLoss:
    check_options(name, loss.options, given)
    options = {option: key.default for option, key in loss.options.items()}
    options |= {option: plain(value) for option, value in given.items()}
    if loss.check is not None:
        try:
            loss.check(**options)
        except ValueError as error:
            raise OptionError(name, f": {error}") from error
    return BoundLoss(name, loss, options, {})


_ITERATION = at_least(0)


def _check_arguments(matched: Any, normalizer: Any, iteration: Any) -> None:
    """
    Raises:
        OptionError, TypeError: as :meth:`Criterion.forward`.
    """
    if not isinstance(matched, MatchedPredictions):
        raise TypeError(f"expected MatchedPredictions, got {type(matched).__name__}")
    if isinstance(normalizer, Tensor):
        # The shape alone: to look at its value would wait for the device.
        if normalizer.dim() != 0:
            raise OptionError(
                "normalizer",
                f" must be a number or a tensor of shape (), got shape {tuple(normalizer.shape)}",
            )
    # What a detector gives is told apart here: a step is to be read in few files.
    elif normalizer is not None and not (type(normalizer) in (int, float) and 0 < normalizer < 1e9):
        POSITIVE.check("normalizer", normalizer)
    if iteration is not None and not (type(iteration) is int and iteration >= 0):
        _ITERATION.check("iteration", iteration)


def _total(losses: Tensor, normalizer: float | Tensor) -> Tensor:
    return losses if losses.dim() == 0 else losses.sum() / normalizer


def _ratio(old: Tensor, new: Tensor) -> Tensor:
    """By how much a loss has been multiplied, without gradient; 1 where it was 0."""
    old, new = old.detach(), new.detach()
    is_zero = old == 0
    return torch.where(is_zero, 1.0, new / torch.where(is_zero, 1.0, old))


def _check_shape(what: str, bound: BoundLoss, value: Any, *shapes: tuple[int, ...]) -> None:
    """Raise a ValueError unless a loss returned a tensor of one of the shapes."""
    if isinstance(value, Tensor) and tuple(value.shape) in shapes:
        return
    expected = " or ".join(f"a tensor of shape {shape}" for shape in shapes)
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"the {what} {bound.name!r} must return {expected}, got {got}")


def _two(what: str, bound: BoundLoss, value: Any) -> tuple[Tensor, Tensor]:
    """Raise a ValueError unless a loss returned a classification and a localization loss."""
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise ValueError(
        f"the {what} {bound.name!r} must return (classification, localization), got "
        f"{type(value).__name__}"
    )
