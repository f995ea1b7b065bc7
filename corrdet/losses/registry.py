"""The losses that a Criterion can be composed of, by name."""

import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from corrdet.names import unknown_name
from corrdet.options import ANY, NOT_NONE, Key, OptionError, Range, declared_options

from .matched_predictions import ACTIVATIONS
from .weight import WEIGHT_OPTIONS, Weight

# Arguments that the Criterion gives to a loss, if it has them; all others are options.
GIVEN = ("classification", "localization", "own_class", "state")

# Where an option is declared: a function with it in its signature, or the declaration itself.
OptionSource = Callable[..., Any] | Mapping[str, Key]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class RegisteredLoss:
    """A loss function, its options and what it needs.

    Attributes:
        function: called as ``function(matched, **options)``, with those of GIVEN that it has.
        options: by name; the config has them.
        activations: the heads it can work with.
        needs_deltas: whether it reads MatchedPredictions.deltas.
        check: called as ``check(**options)`` with all options before training starts; raises a
            ValueError for values that do not go together. None: what their ranges allow will do.
        per_sample: whether it returns one value per sample or positive, not a scalar.
        needs: of a coupling, the losses of which it needs values per sample: "classification",
            "localization".
        bounded: of a localization loss, whether there is a largest value.
        needs_bounded: of a classification loss, whether it needs such a localization loss.
        weight: of a coupling, its weight where none is given.
        definition, use, source: for docs/losses.md: the formula, when to use it, the paper.
        reaches: of a coupling, for docs/losses.md: what its gradient reaches.
    """

    function: Callable[..., Any]
    options: Mapping[str, Key] = field(default_factory=dict)
    activations: tuple[str, ...] = ACTIVATIONS
    needs_deltas: bool = False
    check: Callable[..., None] | None = None
    per_sample: bool = True
    needs: tuple[str, ...] = ()
    bounded: bool = False
    needs_bounded: bool = False
    weight: float = Weight.value
    definition: str = ""
    use: str = ""
    source: str = ""
    reaches: str = ""

    def __reduce__(self):
        # By its name, as its ranges cannot be pickled: a model is pickled to be saved as a whole.
        for registry in REGISTRIES:
            for name, loss in registry.items():
                if loss is self:
                    return _registered, (name,)
        raise pickle.PicklingError("a loss that is not registered any more cannot be pickled")

    def __deepcopy__(self, memo: dict) -> "RegisteredLoss":
        return self

    @cached_property
    def takes_localization(self) -> bool:
        """Whether it reads the values of the localization loss."""
        return "localization" in inspect.signature(self.function).parameters

    @cached_property
    def takes_own_class(self) -> bool:
        """Whether it asks for the classification loss of positives at their own class."""
        return "own_class" in inspect.signature(self.function).parameters

    @cached_property
    def has_state(self) -> bool:
        """Whether it keeps something from step to step."""
        return "state" in inspect.signature(self.function).parameters


class LossRegistry(Mapping[str, RegisteredLoss]):
    """Losses of one kind by name.

    Args:
        what: the kind, for messages.
        reserved: names that options cannot have, as all losses of the kind have them.
    """

    def __init__(self, what: str, reserved: Iterable[str] = ()):
        self.what = what
        self._reserved = tuple(reserved)
        self._losses: dict[str, RegisteredLoss] = {}

    def register(
        self,
        name: str,
        *,
        options_from: Sequence[OptionSource] = (),
        activations: Sequence[str] = ACTIVATIONS,
        needs: Sequence[str] = (),
        **properties: Any,
    ) -> Callable[[Function], Function]:
        """A decorator that registers a function.

        Its arguments after the first one, without those of GIVEN, are its options. One with a
        default is declared by it, and by an annotation with a range
        (:func:`corrdet.options.declared_options`) if it has one. One without is declared in
        ``options_from``.

        Args:
            name: of the loss.
            options_from: functions, or options by name; the first that has an option counts.
            activations, needs, properties: see :class:`RegisteredLoss`.

        Raises:
            ValueError: the name is taken, or an option is declared nowhere.
        """

        def add(function: Function) -> Function:
            # Options and config keys are found by the name alone.
            for registry in (self, *REGISTRIES):
                if name in registry:
                    raise ValueError(f"there already is a {registry.what} named {name!r}")
            options = self._options(name, function, options_from)
            self._losses[name] = RegisteredLoss(
                function, options, tuple(activations), needs=tuple(needs), **properties
            )
            return function

        return add

    def _options(
        self, name: str, function: Callable[..., Any], options_from: Sequence[OptionSource]
    ) -> dict[str, Key]:
        sources = [
            source if isinstance(source, Mapping) else declared_options(source)
            for source in (function, *options_from)
        ]
        options = {}
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            option = parameter.name
            if option in GIVEN:
                continue
            if option in self._reserved:
                raise ValueError(
                    f"the {self.what} {name!r} cannot have an option {option!r}, which is one of "
                    f"every {self.what}"
                )
            declared = [source[option] for source in sources if option in source]
            if parameter.default is not parameter.empty and option not in sources[0]:
                declared.insert(0, Key(parameter.default, _undeclared_range(parameter)))
            declared = [key for key in declared if key.default is not parameter.empty]
            if not declared:
                raise ValueError(
                    f"the option {option!r} of the {self.what} {name!r} needs a default, which the "
                    "config takes over"
                )
            options[option] = declared[0]
        return options

    def __getitem__(self, name: str) -> RegisteredLoss:
        if name not in self._losses:
            # Not a KeyError: that would print the message quoted.
            raise ValueError(unknown_name(self.what, name, self._losses))
        return self._losses[name]

    def __contains__(self, name: object) -> bool:
        return name in self._losses

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)


def _undeclared_range(parameter: inspect.Parameter) -> Range:
    """None is a value where it is the default, in the annotation, or nothing is annotated."""
    annotation = parameter.annotation
    may_be_none = annotation is parameter.empty or "None" in str(annotation)
    return ANY if may_be_none or parameter.default is None else NOT_NONE


CLASSIFICATION_LOSSES = LossRegistry("classification loss")
LOCALIZATION_LOSSES = LossRegistry("localization loss")
COUPLINGS = LossRegistry("coupling", reserved=WEIGHT_OPTIONS)
REGISTRIES = (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS)


def _registered(name: str) -> RegisteredLoss:
    """A loss that was pickled."""
    for registry in REGISTRIES:
        if name in registry:
            return registry[name]
    raise pickle.UnpicklingError(f"there is no loss {name!r}: import what registers it first")


def find_loss(argument: str, registry: LossRegistry, name: Any) -> RegisteredLoss:
    """The loss of that name.

    Args:
        argument: that the name was given for, for messages.
        registry: where it has to be.
        name: a registered name.

    Raises:
        OptionError: there is none; named ``argument``.
    """
    if not isinstance(name, str):
        raise OptionError(argument, f": expected the name of a {registry.what}, got {name!r}")
    if name in registry:
        return registry[name]
    for other in REGISTRIES:
        if name in other:
            problem = f": {name!r} is a {other.what}, expected a {registry.what}"
            raise OptionError(argument, problem)
    raise OptionError(argument, ": " + unknown_name(registry.what, name, registry))


def refusal(classification: str, localization: str, couplings: Sequence[str] = ()) -> str | None:
    """Why losses cannot be composed, in one sentence that names them; None if they can be.

    Args:
        classification, localization, couplings: registered names.

    Raises:
        ValueError: an unknown name.
    """
    classification_loss = CLASSIFICATION_LOSSES[classification]
    localization_loss = LOCALIZATION_LOSSES[localization]
    if classification_loss.takes_localization and not localization_loss.per_sample:
        return (
            f"the classification loss {classification!r} reads the localization loss of each "
            f"positive, which {localization!r} does not have: it is one sum over all positives"
        )
    if classification_loss.needs_bounded and not localization_loss.bounded:
        bounded = [name for name, loss in LOCALIZATION_LOSSES.items() if loss.bounded]
        return (
            f"the classification loss {classification!r} ranks by the localization loss, which has "
            f"to be bounded, and {localization!r} is not; there are: {', '.join(bounded)}"
        )
    for coupling in couplings:
        needs = COUPLINGS[coupling].needs
        if "classification" in needs and not classification_loss.per_sample:
            return (
                f"the coupling {coupling!r} needs the classification loss of each positive, which "
                f"{classification!r} does not have: it is one value for the whole batch"
            )
        if "localization" in needs and not localization_loss.per_sample:
            return (
                f"the coupling {coupling!r} needs the localization loss of each positive, which "
                f"{localization!r} does not have: it is one sum over all positives"
            )
    return None
