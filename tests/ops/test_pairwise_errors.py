"""What step_error and smooth_error promise alike: samples, hostile logits, memory, threads."""

import subprocess
import sys

import pytest
import torch

from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, repeats, samples
from tests.helpers.pairwise_errors import (
    MAGNITUDES,
    PAIRWISE_ERRORS,
    PLACES,
    compare_pairwise_error,
    hostile_logits,
)


@pytest.fixture(params=PAIRWISE_ERRORS)
def error(request):
    return PAIRWISE_ERRORS[request.param]


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("size", [(0, 5), (3, 4), (40, 2000)], ids=str)
def test_halves_are_computed_in_float32(error, size, dtype, device):
    for loss in error.losses:
        compare_pairwise_error(error, *samples(*size, dtype=dtype, device=device), loss)


def test_positives_far_apart(error, device):
    """Windows of positives that share no cell, with negatives between, above and below them."""
    logits, labels, ious = samples(6, 4000, device=device)
    logits = logits + 400 * torch.arange(len(logits), device=device).remainder(7)
    for loss in error.losses:
        compare_pairwise_error(error, logits, labels, ious, loss)


def test_clustered_positives(error, device):
    """More edges within one cell than are compared at once."""
    logits, labels, ious = samples(60, 3000, device=device)
    logits = torch.where(labels == 1, 0.3 + logits / 1000, logits)
    for loss in error.losses:
        compare_pairwise_error(error, logits, labels, ious, loss)


def test_any_strides(error, device):
    logits, labels, ious = samples(20, 300, device=device)
    strided = [torch.stack([values, -values], 1)[:, 0] for values in (logits, labels, ious)]
    for loss in error.losses:
        expected = error.run(error.function, logits, labels, ious, loss)
        actual = error.run(error.function, *strided, loss)
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("size", [(0, 0), (0, 7)], ids=str)
def test_no_positive(error, size, device):
    inputs = samples(*size, device=device, ignored=1)
    for loss in error.losses:
        assert all(r.eq(0).all() for r in error.run(error.function, *inputs, loss))


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_huge_logits(error, magnitude, where, device):
    """Beside them s_u - delta is s_u, but not so the differences of logits."""
    for dtype in DTYPES:
        for size in ((7, 40), (7, 3000)):
            inputs = hostile_logits(magnitude, where, dtype, device, size)
            for loss in error.losses:
                compare_pairwise_error(error, *inputs, loss)


@pytest.mark.parametrize("magnitude", MAGNITUDES[1:])
def test_huge_logits_near_each_other(error, magnitude, device):
    """A few units in the last place apart, with windows as wide as that."""
    steps = torch.arange(30, dtype=torch.float64, device=device) * 2.0**-50
    logits = magnitude / 2 * (1 + steps)
    labels = (torch.arange(30, device=device) % 3 == 0).long()
    ious = torch.linspace(0.1, 1, 10, dtype=torch.float64, device=device)
    for loss in error.losses:
        compare_pairwise_error(error, logits, labels, ious, loss)


def test_a_zero_may_be_negative(error, device):
    logits, labels, ious = samples(8, 60, device=device, ties=True)
    assert logits.eq(0).any()
    negative = torch.where(logits == 0, -0.0, logits)
    for loss in error.losses:
        expected = error.run(error.function, logits, labels, ious, loss)
        actual = error.run(error.function, negative, labels, ious, loss)
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("size", [(10, 50), (10, 3000)], ids=str)
def test_undefined_logits(error, size, bad, device):
    for label in (1, 0, -1):
        for dtype in DTYPES:
            logits, labels, ious = samples(*size, dtype=dtype, device=device)
            logits[(labels == label).nonzero()[1, 0]] = bad
            undefined = label >= 0
            for loss in error.losses:
                results = list(error.run(error.function, logits, labels, ious, loss))
                if loss not in error.second_parts:
                    del results[1]
                assert all(result.isnan().all() == undefined for result in results)
                assert all(result.isnan().any() == undefined for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(30, 500), (300, 60000)], ids=str)
def test_results_do_not_depend_on_threads(error, size, device):
    inputs = samples(*size, dtype=torch.float32, device=device)
    results = repeats(
        lambda: [t for loss in error.losses for t in error.run(error.function, *inputs, loss)]
    )
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_autocast(error, device):
    logits, labels, _ = samples(10, 90, dtype=torch.bfloat16, device=device)
    expected = error.function(logits, labels, *error.options)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = error.function(logits, labels, *error.options)
    for mine, theirs in zip(torch.atleast_1d(actual), torch.atleast_1d(expected), strict=True):
        assert mine.dtype == torch.float32 and mine == theirs


MEMORY = """
import resource, sys, torch
from tests.helpers.pairwise_errors import PAIRWISE_ERRORS
torch.set_num_threads(2)
positives, negatives = 20_000, 3_000_000
logits = torch.randn(positives + negatives)
labels = (torch.arange(len(logits)) < positives).to(torch.int8)
ious = torch.rand(positives)
error = PAIRWISE_ERRORS[sys.argv[1]]
def run(count):
    part = slice(positives - min(positives, count), positives + count)
    x, y = logits[part].requires_grad_(), labels[part]
    own = ious[-int(y.sum()):]
    if sys.argv[1] == "step_error":
        sum(error.function(x, y, "alrp", 1.0, own)).backward()
    else:
        error.function(x, y, "cross_entropy", "rank", 8.0, 0.5, own, True).backward()
run(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(negatives)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRWISE_ERRORS)
def test_memory(name):
    """64 bytes per sample and 256 per positive, where the matrix would take 240 gigabytes."""
    command = [sys.executable, "-c", MEMORY, name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 3_020_000 + 256 * 20_000


LOGITS, LABELS = torch.zeros(3), torch.tensor([1, 0, -1])


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (([1.0], LABELS), TypeError, "logits must be a torch.Tensor, got list"),
        ((LOGITS.int(), LABELS), TypeError, "logits must be float16.* got int32"),
        ((LOGITS[None], LABELS), ValueError, r"logits must have shape \(S,\).* got \(1, 3\)"),
        ((LOGITS, [1]), TypeError, "targets must be a torch.Tensor, got list"),
        ((LOGITS, LABELS[:2]), ValueError, r"targets must have the shape of logits, \(3,\), got"),
        ((LOGITS, LABELS.cfloat()), TypeError, "targets must be integers or floating"),
        ((LOGITS, LABELS.to("meta")), ValueError, "targets must be on the device of logits, cpu"),
        ((LOGITS, LABELS * 2), ValueError, "labels must be -1, 0 or 1, got 2 at position 0"),
        ((LOGITS, LABELS / 2), ValueError, "labels must be -1, 0 or 1, got 0.5 at position 0"),
    ],
)
def test_bad_samples(error, arguments, kind, message):
    with pytest.raises(kind, match=message):
        error.function(*arguments, *error.options)


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("magnitude", MAGNITUDES[1::2])
def test_emulated_huge_logits(emulator, error, magnitude, where):
    for number, loss in enumerate(error.losses):
        order, dtype = ORDERS[number % len(ORDERS)], DTYPES[number % 2]
        inputs = hostile_logits(magnitude, where, dtype, size=(5, 15))
        error.compare_emulated(emulator, *inputs, loss, order=order, grid=2)


def test_emulated_huge_logits_of_several_sorted_tiles(emulator):
    inputs = hostile_logits(1e16, "some positives", torch.float64, size=(1300, 50))
    PAIRWISE_ERRORS["step_error"].compare_emulated(emulator, *inputs, "alrp", order="random")
