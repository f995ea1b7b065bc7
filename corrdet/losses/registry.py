"""The losses that a Criterion can be composed of, by name."""

import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from corrdet.activation import ACTIVATIONS
from corrdet.names import unknown_name
from corrdet.options import DeclarationError, Key, OptionError, OptionTypeError, shown

from .declaration import (
    GIVEN,
    OptionSource,
    check_arguments,
    check_name,
    check_properties,
    declared_in,
    place,
)
from .weight import WEIGHT_OPTIONS, Weight

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
        weights_positives: of a classification loss, whether it weights the localization losses of
            positives, which are not to be weighted before then.
        state_with: the option without which (0, None) nothing is kept in ``state``, such as
            "memory"; "": something always is.
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
    weights_positives: bool = False
    state_with: str = ""
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
        given: which of :data:`GIVEN` losses of the kind can be given.
        reserved_names: that its losses cannot have.
        reserved_options: that they cannot have, as all losses of the kind have them.
        lacks: attributes of :class:`RegisteredLoss` that say nothing of the kind.
    """

    def __init__(
        self,
        what: str,
        given: Sequence[str] = GIVEN,
        reserved_names: Iterable[str] = (),
        reserved_options: Iterable[str] = (),
        lacks: Iterable[str] = (),
    ):
        self.what = what
        self.given = tuple(given)
        self.reserved_names = tuple(reserved_names)
        self.reserved_options = tuple(reserved_options)
        self._lacks = tuple(lacks)
        self._losses: dict[str, RegisteredLoss] = {}

    def register(
        self, name: str, *, options_from: Sequence[OptionSource] = (), **properties: Any
    ) -> Callable[[Function], Function]:
        """A decorator that registers a function.

        The function is called with a :class:`MatchedPredictions` first. Its other arguments,
        without those of :data:`GIVEN`, are its options. One with a default is declared by it, and
        by an annotation with a range (:func:`corrdet.options.declared_options`) if it has one. One
        without is declared in ``options_from``.

        Args:
            name: of the loss, also of its node in the config: small letters, digits and ``_``.
            options_from: functions, or options by name; the first that has an option counts.
            properties: attributes of :class:`RegisteredLoss`.

        Raises:
            DeclarationError: a ValueError: a name that is taken or cannot be one, arguments that a
                loss of this kind cannot be called with, an option that is declared nowhere, or a
                property that there is not or of another type.
        """
        if not isinstance(name, str):
            got = f"the function {name.__name__!r}" if inspect.isfunction(name) else shown(name)
            raise DeclarationError(
                f'expected the name of a {self.what}, as in @register("my_loss"), got {got}'
                + place(name)
            )

        def add(function: Function) -> Function:
            try:
                self._losses[name] = self._declared(name, function, options_from, properties)
            except DeclarationError as error:
                raise DeclarationError(f"{error}{place(function)}") from error
            return function

        return add

    def _declared(
        self,
        name: str,
        function: Callable[..., Any],
        options_from: Sequence[OptionSource],
        properties: dict[str, Any],
    ) -> RegisteredLoss:
        check_name(self.what, name, self.reserved_names)
        # Options and config keys are found by the name alone.
        for registry in (self, *REGISTRIES):
            if name in registry:
                raise DeclarationError(f"there already is a {registry.what} named {name!r}")
        what = f"the {self.what} {name!r}"
        arguments = check_arguments(what, function, self.given, self.reserved_options)
        options = declared_in(what, arguments, function, options_from)
        known = [name for name in RegisteredLoss.__dataclass_fields__ if name not in self._lacks]
        check_properties(what, properties, known, options)
        for several in ("activations", "needs"):
            if several in properties:
                properties = {**properties, several: tuple(properties[several])}
        return RegisteredLoss(function, options, **properties)

    def __getitem__(self, name: str) -> RegisteredLoss:
        if name not in self._losses:
            # Not a KeyError: that would print the message quoted.
            raise ValueError(unknown_name(self.what, name, self._losses))
        return self._losses[name]

    def get(self, name: str, *default: Any) -> Any:
        """The loss of that name; where there is none, the default if one is given.

        Raises:
            ValueError: there is none, and no default; as ``registry[name]``, it names the nearest.
        """
        return default[0] if default and name not in self else self[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._losses

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    def __repr__(self) -> str:
        return f"<{self.what} registry: {', '.join(sorted(self._losses))}>"


_OF_COUPLINGS = ("needs", "weight", "reaches")
CLASSIFICATION_LOSSES = LossRegistry(
    "classification loss", ("localization", "state"), lacks=("bounded", *_OF_COUPLINGS)
)
LOCALIZATION_LOSSES = LossRegistry(
    "localization loss", ("state",), lacks=("needs_bounded", "weights_positives", *_OF_COUPLINGS)
)
COUPLINGS = LossRegistry(
    "coupling",
    # What it adds is loss_<name>: names of the Criterion's and the region proposals' own.
    reserved_names=("cls", "box_reg", "loc"),
    reserved_options=WEIGHT_OPTIONS,
    lacks=("per_sample", "bounded", "needs_bounded", "weights_positives"),
)
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
        raise OptionTypeError(
            argument, f": expected the name of a {registry.what}, got {shown(name)}"
        )
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


def distinct_names(couplings: Iterable[str]) -> list[str]:
    """The names of couplings.

    Raises:
        OptionError: no list of names, or one that is in it twice.
    """
    if isinstance(couplings, str) or not isinstance(couplings, Iterable):
        raise OptionTypeError("couplings", f" must be a list of names, got {shown(couplings)}")
    names = list(couplings)
    if len({repr(name) for name in names}) != len(names):
        raise OptionError("couplings", f" names one twice: {names}")
    return names
