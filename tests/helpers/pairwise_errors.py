"""The pairwise errors, step_error and smooth_error, as the tests of both call them."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch

from corrdet.ops import reference, smooth_error, step_error
from corrdet.ops.kernels.smooth_error import BALANCES, DISTANCES
from corrdet.ops.kernels.step_error import STEP_LOSSES
from tests.helpers.ops import DTYPES, assert_near, samples

SMOOTH_LOSSES = list(product(DISTANCES, BALANCES, (False, True)))  # the last: with IoUs
SIZES = [(1, 0), (0, 5), (1, 1), (5, 0), (2, 3), (40, 500), (200, 3000), (3, 20000)]


def run_step(function, logits, labels, ious, loss, delta=1.0):
    """Values and gradients of all parts, and of a weighted sum of them."""
    logits = logits.detach().requires_grad_()
    targets, localization = labels, None
    if loss == "rank_sort":
        targets = labels.double().masked_scatter(labels == 1, ious.double())
    if loss == "alrp":
        localization = (3 * ious).requires_grad_()
    first, second = function(logits, targets, loss, delta, localization)
    results = [first.detach(), second.detach()]
    inputs = [logits] if localization is None else [logits, localization]
    total = 0.7 * first - 1.3 * second
    results += torch.autograd.grad(first, logits, retain_graph=True)
    results += torch.autograd.grad(total, inputs)
    return results


def run_smooth(function, logits, labels, ious, loss, lam=8.0, delta=0.5, weight_by_iou=True):
    """Value and gradient, of twice the value."""
    logits = logits.detach().requires_grad_()
    distance, balance, with_ious = loss
    ious = ious if with_ious else None
    value = function(logits, labels, distance, balance, lam, delta, ious, weight_by_iou)
    return value.detach(), *torch.autograd.grad(2 * value, logits)


def emulate_step(emulator, logits, targets, loss, delta, localization=None, **options):
    count, positives = len(logits), -1 if localization is None else len(localization)
    rows = 2 if loss == "rank_sort" else 1
    values, gradients = logits.new_full((2,), -9), logits.new_full((rows, count), -9)
    on_localization = logits.new_full((max(positives, 0),), -9)
    emulator.run(
        "step_error", logits.dtype, logits, targets.double(), count, loss, delta, localization,
        positives, values, gradients, on_localization, **options,
    )  # fmt: skip
    return values, gradients, on_localization


def emulate_smooth(emulator, logits, targets, distance, balance, lam, delta, ious, most_cells=-1,
                   **options):  # fmt: skip
    value, gradient = logits.new_full((1,), -9), torch.full_like(logits, -9)
    emulator.run(
        "smooth_error", logits.dtype, logits, targets.double(), len(logits), distance, balance, lam,
        delta, ious, -1 if ious is None else len(ious), True, most_cells, value, gradient,
        **options,
    )  # fmt: skip
    return value, gradient


def compare_emulated_step(emulator, logits, labels, ious, loss, **options):
    """Hold the emulated kernels together with the twin."""
    localization = 2 * ious if loss == "alrp" else None
    targets = labels.double()
    if loss == "rank_sort":
        targets = targets.masked_scatter(labels == 1, ious.double())
    values, gradients, on_localization = emulate_step(
        emulator, logits, targets, loss, 0.7, localization, **options
    )
    logits.requires_grad_()
    first, second = reference.step_error(logits, targets, loss, 0.7, localization)
    assert_near(values, torch.stack([first, second]).detach())
    assert_near(gradients[0], torch.autograd.grad(first, logits, retain_graph=True)[0])
    if loss == "rank_sort" and len(ious):
        assert_near(gradients[1], torch.autograd.grad(second, logits)[0])
    if loss == "alrp" and len(ious):
        localization.requires_grad_()
        second = reference.step_error(logits, targets, loss, 0.7, localization)[1]
        assert_near(on_localization, torch.autograd.grad(second, localization)[0])


def compare_emulated_smooth(emulator, logits, labels, ious, loss, **options):
    """Hold the emulated kernels together with the twin."""
    distance, balance, with_ious = loss
    arguments = (distance, balance, 8.0, 0.5, ious if with_ious else None)
    value, gradient = emulate_smooth(emulator, logits, labels, *arguments, **options)
    logits.requires_grad_()
    expected = reference.smooth_error(logits, labels, *arguments, True)
    assert_near(value, expected.detach()[None])
    assert_near(gradient, torch.autograd.grad(expected, logits)[0])


class PairwiseError(NamedTuple):
    """One of the two, with all its losses."""

    function: Callable[..., Any]
    twin: Callable[..., Any]
    losses: list
    run: Callable[..., Any]
    compare_emulated: Callable[..., None]
    options: tuple  # of a call behind logits and labels, without IoUs
    second_parts: tuple  # losses whose second value depends on the logits


PAIRWISE_ERRORS = {
    "step_error": PairwiseError(
        step_error, reference.step_error, list(STEP_LOSSES), run_step, compare_emulated_step,
        ("step", 1.0), ("rank_sort", "alrp"),
    ),
    "smooth_error": PairwiseError(
        smooth_error, reference.smooth_error, SMOOTH_LOSSES, run_smooth, compare_emulated_smooth,
        ("cross_entropy", "rank", 8.0, 0.5, None, False), tuple(SMOOTH_LOSSES),
    ),
}  # fmt: skip


def hostile_logits(magnitude, where, dtype, device="cpu", size=(7, 40)):
    """Samples of which some are as large as `magnitude`, or as their dtype can hold."""
    logits, labels, ious = samples(*size, dtype=dtype, device=device)
    large = min(magnitude, torch.finfo(dtype).max)
    first = torch.arange(len(logits), device=device) % 3 == 0
    chosen = {
        "all": labels >= 0,
        "positives": labels == 1,
        "some positives": (labels == 1) & first,
        "negatives": (labels == 0) & first,
        "both": first,
    }[where]
    logits = torch.where(chosen, torch.full_like(logits, large), logits)
    if where == "both":
        logits[::6] = -large
    return logits, labels, ious


MAGNITUDES = (1e8, 1e16, 1e30, 1.7e308)
PLACES = ("all", "positives", "some positives", "negatives", "both")


def compare_pairwise_error(error: PairwiseError, logits, labels, ious, *options):
    """Hold an operator together with its twin in float64."""
    actual = error.run(error.function, logits, labels, ious, *options)
    inputs = logits.double().cpu(), labels.cpu(), ious.cpu()
    expected = error.run(error.twin, *inputs, *options)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert actual[0].dtype == wide and actual[-1].device == logits.device
    for mine, theirs in zip(actual, expected, strict=True):
        tolerance = None if mine.dtype in DTYPES[2:] else 1e-10 if wide == torch.float64 else 1e-5
        assert_near(mine, theirs, tolerance)
