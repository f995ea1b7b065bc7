"""The losses that a Criterion can be composed of, by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corrdet.names import unknown_name

# Arguments that the Criterion gives to a loss, if it has them; all others are options.
GIVEN = ("classification", "localization", "state")


@dataclass(frozen=True)
class RegisteredLoss:
    """A loss function and what it needs.

    Attributes:
        function: called as ``function(matched, **options)``, with those of GIVEN that it has.
        activations: the heads it can work with, of "sigmoid" and "softmax".
        needs_deltas: whether it reads MatchedPredictions.deltas.
        check: called as ``check(**options)`` with all options before training starts; raises a
            ValueError for values that the loss cannot work with. None: any will do.
        per_sample: whether it returns one value per sample or positive, not a scalar.
        needs: of a coupling, the losses of which it needs values per sample: "classification",
            "localization".
        bounded: of a localization loss, whether there is a largest value.
        needs_bounded: of a classification loss, whether it needs such a localization loss.
    """

    function: Callable[..., Any]
    activations: tuple[str, ...] = ("sigmoid", "softmax")
    needs_deltas: bool = False
    check: Callable[..., None] | None = None
    per_sample: bool = True
    needs: tuple[str, ...] = ()
    bounded: bool = False
    needs_bounded: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments after ``matched``, and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that the config has, and their defaults."""
        return {name: value for name, value in self.arguments.items() if name not in GIVEN}

    def may_be_none(self, option: str) -> bool:
        """Whether None is a value of an option; anything goes where nothing is said of it."""
        parameter = inspect.signature(self.function).parameters[option]
        said = parameter.annotation
        if parameter.default is None or said is inspect.Parameter.empty:
            return True
        return "None" in (said if isinstance(said, str) else str(said))

    @property
    def takes_localization(self) -> bool:
        """Whether it reads the values of the localization loss."""
        return "localization" in self.arguments

    @property
    def has_state(self) -> bool:
        """Whether it keeps something from step to step."""
        return "state" in self.arguments


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
        needs: Sequence[str] = (),
        **properties: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that registers a function; see :class:`RegisteredLoss` for the arguments.

        Raises:
            ValueError: the name is taken, or an option has no default.
        """

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._losses:
                raise ValueError(f"there already is a {self.what} named {name!r}")
            loss = RegisteredLoss(function, tuple(activations), needs=tuple(needs), **properties)
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


def refusal(classification: str, localization: str, couplings: Sequence[str] = ()) -> str | None:
    """Why losses cannot be composed, in one sentence that names them; None if they can be.

    Args:
        classification, localization, couplings: registered names.

    Raises:
        ValueError: an unknown name.
    """
    of_classification = CLASSIFICATION_LOSSES[classification]
    of_localization = LOCALIZATION_LOSSES[localization]
    if of_classification.takes_localization and not of_localization.per_sample:
        return (
            f"the classification loss {classification!r} reads the localization loss of each "
            f"positive, which {localization!r} does not have: it is one sum over all positives"
        )
    if of_classification.needs_bounded and not of_localization.bounded:
        bounded = [name for name, loss in LOCALIZATION_LOSSES.items() if loss.bounded]
        return (
            f"the classification loss {classification!r} ranks by the localization loss, which has "
            f"to be bounded, and {localization!r} is not; there are: {', '.join(bounded)}"
        )
    for coupling in couplings:
        needs = COUPLINGS[coupling].needs
        if "classification" in needs and not of_classification.per_sample:
            return (
                f"the coupling {coupling!r} needs the classification loss of each positive, which "
                f"{classification!r} does not have: it is one value for the whole batch"
            )
        if "localization" in needs and not of_localization.per_sample:
            return (
                f"the coupling {coupling!r} needs the localization loss of each positive, which "
                f"{localization!r} does not have: it is one sum over all positives"
            )
    return None
