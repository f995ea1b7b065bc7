"""The lines of code on the page of each loss, and what the loss costs."""

import platform
import statistics
import time

import torch

from corrdet.losses import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    Criterion,
    example_predictions,
)
from corrdet.losses.registry import RegisteredLoss, refusal

REGISTRIES = {
    "classification": CLASSIFICATION_LOSSES,
    "localization": LOCALIZATION_LOSSES,
    "couplings": COUPLINGS,
}
# Of a usual training batch of two images, to be compared with focal loss.
SAMPLES, CLASSES, POSITIVES = 20_000, 80, 200


def composition(kind: str, name: str) -> tuple[str, str, list[str], str]:
    """A Criterion that has a loss: its three arguments, and the activation of the head."""
    loss: RegisteredLoss = REGISTRIES[kind][name]
    activation = loss.activations[0]
    classification = "sigmoid_focal" if activation == "sigmoid" else "softmax_cross_entropy"
    localization, couplings = "giou", []
    if kind == "classification":
        classification = name
    elif kind == "localization":
        localization = name
    else:
        couplings = [name]
    assert not refusal(classification, localization, couplings)
    return classification, localization, couplings, activation


def example(kind: str, name: str) -> str:
    """Five lines that use a loss by its name."""
    classification, localization, couplings, activation = composition(kind, name)
    given = "" if activation == "sigmoid" else f'activation="{activation}"'
    names = f'"{classification}", "{localization}"' + (f', ["{name}"]' if couplings else "")
    return f"""from corrdet.losses import Criterion, example_predictions

matched = example_predictions({given})  # of your detector: a MatchedPredictions
criterion = Criterion({names})
losses = criterion(matched)  # {{"loss_cls": ..., "loss_box_reg": ...}}
sum(losses.values()).backward()
"""


def cost(kind: str, name: str, repetitions: int = 5) -> float:
    """Milliseconds that one loss takes forward and backward, on one thread of the CPU.

    Of a coupling, what a Criterion takes more with it than without.
    """
    classification, localization, couplings, activation = composition(kind, name)
    if kind != "couplings":
        return _milliseconds(_alone(kind, name), activation, repetitions)
    with_it = Criterion(classification, localization, couplings)
    without = Criterion(classification, localization)
    both = [_milliseconds(c, activation, repetitions) for c in (with_it, without)]
    return max(both[0] - both[1], 0.0)


def machine() -> str:
    """Where costs were measured."""
    return f"one thread of a {platform.machine()} CPU, torch {torch.__version__.split('+')[0]}"


def _alone(kind: str, name: str):
    criterion = Criterion(*composition(kind, name)[:2])
    bound = criterion.classification if kind == "classification" else criterion.localization

    def loss(matched):
        given = {}
        if kind == "classification" and bound.loss.takes_localization:
            given = {"localization": criterion.localization(matched)}
        value = bound(matched, **given)
        values = value if isinstance(value, tuple) else (value,)
        return {str(index): part.sum() for index, part in enumerate(values)}

    return loss


def _milliseconds(loss, activation: str, repetitions: int) -> float:
    times = []
    for seed in range(repetitions):
        matched = example_predictions(SAMPLES, CLASSES, POSITIVES, activation, seed)
        start = time.perf_counter()
        sum(loss(matched).values()).backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
