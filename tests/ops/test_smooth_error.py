"""smooth_error against its twin, pair by pair, and what it promises."""

import math
import subprocess
import sys
from itertools import product

import pytest
import torch

from corrdet.ops import reference, smooth_error
from corrdet.ops.kernels.smooth_error import BALANCES, DISTANCES
from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, assert_near, compare_pairwise_error, repeats, samples

pytestmark = pytest.mark.slow

LOSSES = list(product(DISTANCES, BALANCES, (False, True)))  # the last: with IoUs
SIZES = [(1, 0), (0, 5), (1, 1), (5, 0), (2, 3), (40, 500), (200, 3000), (3, 20000)]


def run_smooth(function, logits, labels, ious, loss, lam=8.0, delta=0.5, weight_by_iou=True):
    """Value and gradient, of twice the value."""
    logits = logits.detach().requires_grad_()
    distance, balance, with_ious = loss
    ious = ious if with_ious else None
    value = function(logits, labels, distance, balance, lam, delta, ious, weight_by_iou)
    return value.detach(), *torch.autograd.grad(2 * value, logits)


def compare(*arguments):
    compare_pairwise_error(run_smooth, smooth_error, reference.smooth_error, *arguments)


def ape(logits, labels, ious):
    return smooth_error(logits, labels, "cross_entropy", "rank", 8.0, 0.5, ious, True)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("ties", (False, True), ids=("", "ties"))
@pytest.mark.parametrize("scale", (1.0, 5.0, 1000.0))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_reference(size, scale, ties, loss, device):
    for dtype in DTYPES[:2]:
        for lam, delta in ((8.0, 0.5), (1.5, 4.0)):
            inputs = samples(*size, dtype=dtype, device=device, scale=scale, ties=ties)
            compare(*inputs, loss, lam, delta)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("size", [(0, 5), (3, 4), (40, 2000)], ids=str)
def test_halves_are_computed_in_float32(size, dtype, device):
    for loss in LOSSES:
        compare(*samples(*size, dtype=dtype, device=device), loss)


def test_positives_far_apart(device):
    """Windows of positives that share no cell, with negatives between, above and below them."""
    logits, labels, ious = samples(6, 4000, device=device)
    logits = logits + 400 * torch.arange(len(logits), device=device).remainder(7)
    for loss in LOSSES:
        compare(logits, labels, ious, loss)


def test_clustered_positives(device):
    """More edges within one cell than are compared at once."""
    logits, labels, ious = samples(60, 3000, device=device)
    logits = torch.where(labels == 1, 0.3 + logits / 1000, logits)
    for loss in LOSSES:
        compare(logits, labels, ious, loss)


def test_negatives_on_the_edge_do_not_count(device):
    logits = torch.tensor([1.0, 0.5, 0.5, 3.0], dtype=torch.float64, device=device).repeat(200)
    labels = torch.tensor([1, 0, 0, 0], device=device).repeat(200)
    inputs = logits, labels, torch.ones(200, dtype=torch.float64, device=device)
    loss = ("cross_entropy", "negatives", False)
    compare(*inputs, loss)
    (gradient,) = run_smooth(smooth_error, *inputs, loss)[1:]
    assert gradient[1::4].eq(0).all() and gradient[3::4].gt(0).all()


@pytest.mark.parametrize("with_iou_weights", (False, True))
def test_weight_by_iou(with_iou_weights, device):
    inputs = samples(30, 2000, device=device)
    compare(*inputs, ("cross_entropy", "rank", True), 8.0, 0.5, with_iou_weights)


def test_any_strides(device):
    logits, labels, ious = samples(20, 300, device=device)
    wide_logits, wide_labels = torch.stack([logits, -logits], 1), torch.stack([labels, labels], 1)
    wide_ious = torch.stack([ious, ious], 1)
    strided = wide_logits[:, 0], wide_labels[:, 0], wide_ious[:, 0]
    for loss in LOSSES:
        expected = run_smooth(smooth_error, logits, labels, ious, loss)
        assert all(map(torch.equal, run_smooth(smooth_error, *strided, loss), expected))


@pytest.mark.parametrize("size", [(0, 0), (0, 7)], ids=str)
def test_no_positive(size, device):
    logits, labels, ious = samples(*size, device=device, ignored=1)
    for loss in LOSSES:
        for result in run_smooth(smooth_error, logits, labels, ious, loss):
            assert result.eq(0).all()


@pytest.mark.parametrize("extreme", (1e4, -1e4))
@pytest.mark.parametrize("which", (1, 0))
def test_huge_logits(which, extreme, device):
    for dtype in DTYPES:
        logits, labels, ious = samples(10, 3000, dtype=dtype, device=device)
        logits[(labels == which).nonzero()[:3, 0]] = extreme
        for loss in LOSSES:
            results = run_smooth(smooth_error, logits, labels, ious, loss)
            assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("size", [(10, 50), (10, 3000)], ids=str)
def test_undefined_logits(size, bad, device):
    for label in (1, 0, -1):
        logits, labels, ious = samples(*size, device=device)
        logits[(labels == label).nonzero()[1, 0]] = bad
        undefined = label >= 0
        for loss in LOSSES:
            results = run_smooth(smooth_error, logits, labels, ious, loss)
            assert all(result.isnan().all() == undefined for result in results)
            assert all(result.isnan().any() == undefined for result in results)


def test_gradcheck(device):
    # The one whose balance does not depend on the logits, so that the update is a gradient.
    logits, labels, _ = samples(6, 30, device=device)
    logits.requires_grad_()

    def loss(x):
        return smooth_error(x, labels, "cross_entropy", "negatives", 2.0, 3.0, None, False)

    assert torch.autograd.gradcheck(loss, logits)
    logits, labels, _ = samples(20, 1500, device=device)
    logits, direction = logits.requires_grad_(), torch.linspace(-1, 1, len(logits)).to(logits)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    step = 1e-6
    difference = loss(logits + step * direction) - loss(logits - step * direction)
    assert_near(difference / (2 * step), (gradient * direction).sum(), 1e-6)


@pytest.mark.parametrize("size", [(30, 500), (300, 60000)], ids=str)
def test_results_do_not_depend_on_threads(size, device):
    inputs = samples(*size, dtype=torch.float32, device=device)
    results = repeats(
        lambda: [t for loss in LOSSES for t in run_smooth(smooth_error, *inputs, loss)]
    )
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile(backend, device):
    logits, labels, ious = samples(10, 90, dtype=torch.float32, device=device)
    logits.requires_grad_()

    def loss(x):
        return ape(x * 2, labels, ious)

    (expected,) = torch.autograd.grad(loss(logits), logits)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    (actual,) = torch.autograd.grad(compiled(logits), logits)
    assert_near(actual, expected)


def test_autocast(device):
    inputs = samples(10, 90, dtype=torch.bfloat16, device=device)
    expected = ape(*inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = ape(*inputs)
    assert actual.dtype == torch.float32
    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(4, 20), (0, 3)], ids=str)
def test_opcheck(size, dtype, device):
    logits, labels, ious = samples(*size, dtype=dtype, device=device)
    logits.requires_grad_()
    for distance, balance, with_ious in LOSSES:
        options = (distance, balance, 8.0, 0.5, ious if with_ious else None, True)
        torch.library.opcheck(torch.ops.corrdet.smooth_error, (logits, labels, *options))


def test_second_derivative_is_refused(device):
    logits, labels, ious = samples(5, 20, device=device)
    logits.requires_grad_()
    value = ape(logits, labels, ious)
    (gradient,) = torch.autograd.grad(value.square(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once, not twice"):
        gradient.square().sum().backward()


MEMORY = """
import resource, torch
from corrdet.ops import smooth_error
torch.set_num_threads(2)
positives, negatives = 20_000, 3_000_000
logits = torch.randn(positives + negatives)
labels = (torch.arange(len(logits)) < positives).to(torch.int8)
ious = torch.rand(positives)
def run(count):
    part = slice(positives - min(positives, count), positives + count)
    x, y = logits[part].requires_grad_(), labels[part]
    own = ious[-int(y.sum()):]
    smooth_error(x, y, "cross_entropy", "rank", 8.0, 0.5, own, True).backward()
run(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(negatives)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_memory():
    """64 bytes per sample and 256 per positive, where the matrix would take 240 gigabytes."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 3_020_000 + 256 * 20_000


def test_more_than_2_to_the_31_pairs():
    """Against sums that do without pairs: with equal negatives a single one can be weighted."""
    positives = torch.linspace(-1, 1, 3000, dtype=torch.float64)
    logits = torch.cat([positives, torch.full((1_000_000,), 0.25, dtype=torch.float64)])
    labels = torch.cat([torch.ones(3000), torch.zeros(1_000_000)])
    value, gradient = run_smooth(smooth_error, logits, labels, None, LOSSES[0])
    counted = 0.25 > positives - 0.5
    error = counted * (8 * (0.25 - positives)).sigmoid() * 1e6
    among = (8 * (positives[None] - positives[:, None])).sigmoid()
    rank = (among * (positives[None] > (positives - 0.5)[:, None])).sum(1) + 0.5 + error
    pair_loss = torch.nn.functional.softplus(8 * (0.25 - positives)) / 8 * 1e6
    assert_near(value, (counted * pair_loss / rank).mean())
    assert_near(gradient[3000:].sum() / 2, (error / rank).mean())


def test_more_pairs_than_fit_in_32_bits():
    """50 000 x 50 000, all logits alike: every other sample counts by a half."""
    count = 50_000
    logits = torch.zeros(2 * count, requires_grad=True)
    labels = (torch.arange(2 * count) % 2).to(torch.int8)
    rank = 1 + (count - 1) / 2 + count / 2
    value = smooth_error(logits, labels, "sigmoid", "rank", 8.0, 0.5, None, False)
    assert value.item() == pytest.approx(count / 2 / rank, rel=1e-5)
    smooth_error(logits, labels, "cross_entropy", "rank", 8.0, 0.5, None, False).backward()
    # Each negative is pushed down by every positive, each positive up by all negatives.
    expected = torch.where(labels == 1, -1.0, 1.0) * (0.5 / rank)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=0)


LOGITS, LABELS, ONE = torch.zeros(3), torch.tensor([1, 0, -1]), torch.ones(1)


@pytest.mark.parametrize(
    "arguments, error, message",
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
def test_bad_samples(arguments, error, message):
    with pytest.raises(error, match=message):
        smooth_error(*arguments, "sigmoid", "rank", 8.0, 0.5, None, False)


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"distance": "hinge"}, ValueError, "distance must be one of"),
        ({"balance": "none"}, ValueError, "balance must be one of"),
        ({"lam": -1.0}, ValueError, "lam must be positive and finite, got -1.0"),
        ({"delta": math.inf}, ValueError, "delta must be positive and finite"),
        ({"ious": torch.ones(2)}, ValueError, "one value per positive, 1, got 2"),
        ({"ious": ONE * 1.5}, ValueError, r"ious must be in \[0, 1\], got 1.5"),
        ({"ious": ONE.int()}, TypeError, "ious must be float16"),
        ({"ious": ONE.to("meta")}, ValueError, "on the device of logits"),
    ],
)
def test_bad_options(changed, error, message):
    options = {"distance": "sigmoid", "balance": "rank", "lam": 8.0, "delta": 0.5, "ious": None}
    with pytest.raises(error, match=message):
        smooth_error(LOGITS, LABELS, **(options | changed), weight_by_iou=True)


def test_operators_guard_themselves():
    for options in (("none", "rank", 1.0, 1.0), ("sigmoid", "none", 1.0, 1.0),
                    ("sigmoid", "rank", 0.0, 1.0), ("sigmoid", "rank", 1.0, math.nan)):  # fmt: skip
        with pytest.raises(ValueError):
            torch.ops.corrdet.smooth_error(LOGITS, LABELS, *options, None, True)


@pytest.mark.parametrize("option, names", [("distance", DISTANCES), ("balance", BALANCES)])
def test_the_names_are_those_of_the_kernels(option, names):
    options = {"distance": "sigmoid", "balance": "rank", option: "none"}
    choices = ", ".join(map(repr, names))
    with pytest.raises(ValueError, match=f"{option} must be one of {choices}, got 'none'"):
        torch.ops.corrdet.smooth_error(
            LOGITS, LABELS, lam=1.0, delta=1.0, ious=None, weight_by_iou=False, **options
        )


def emulate(emulator, logits, targets, distance, balance, lam, delta, ious, most_cells=-1,
            **options):  # fmt: skip
    value, gradient = logits.new_full((1,), -9), torch.full_like(logits, -9)
    emulator.run(
        "smooth_error", logits.dtype, logits, targets.double(), len(logits), distance, balance, lam,
        delta, ious, -1 if ious is None else len(ious), True, most_cells, value, gradient,
        **options,
    )  # fmt: skip
    return value, gradient


def compare_emulated(emulator, dtype, loss, size, scale=1.0, ties=False, **options):
    logits, labels, ious = samples(*size, dtype, scale=scale, ties=ties)
    distance, balance, with_ious = loss
    arguments = (distance, balance, 8.0, 0.5, ious if with_ious else None)
    value, gradient = emulate(emulator, logits, labels, *arguments, **options)
    logits.requires_grad_()
    expected = reference.smooth_error(logits, labels, *arguments, True)
    assert_near(value, expected.detach()[None])
    assert_near(gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("with_ious", (False, True))
@pytest.mark.parametrize("distance, balance", [("cross_entropy", "rank"), ("sigmoid", "negatives")])
def test_emulated(emulator, distance, balance, with_ious, dtype):
    loss = distance, balance, with_ious
    sizes = [(1, 0), (0, 5), (5, 0), (30, 400), (40, 9000)]
    for size, order, ties in zip(sizes, ORDERS + ORDERS, (False, True) * 3, strict=False):
        for most_cells in (0, -1):  # pairs one by one, and cells
            options = {"ties": ties, "order": order, "grid": 2, "most_cells": most_cells}
            compare_emulated(emulator, dtype, loss, size, **options)
    compare_emulated(emulator, dtype, loss, (20, 300), scale=1000.0, order="random")


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_emulated_undefined_samples(emulator, bad):
    logits, labels, ious = samples(5, 60, torch.float32)
    wrong = [
        (logits.index_fill(0, (labels == 0).nonzero()[3], bad), labels, ious),
        (logits, labels.masked_fill(labels == 1, 2), ious),
        (logits, labels, ious[:-1]),
        (logits, labels, ious + 1),
    ]
    for *inputs, values in wrong:
        results = emulate(emulator, *inputs, "sigmoid", "rank", 8.0, 0.5, values, 256)
        assert all(result.isnan().all() for result in results)


def test_emulated_order_of_atomic_additions_does_not_matter(emulator):
    logits, labels, ious = samples(30, 3000)
    arguments = logits, labels, "sigmoid", "rank", 8.0, 0.5, ious, 256
    results = [emulate(emulator, *arguments, order=order) for order in ORDERS]
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_emulated_writes_past_an_output_are_found(emulator):
    logits, labels, ious = samples(10, 90)
    arguments = logits, labels, "sigmoid", "rank", 8.0, 0.5, ious, 256
    emulate(emulator, *arguments)
    with pytest.raises(RuntimeError, match="out of bounds: output"):
        emulate(emulator, *arguments, missing=1)
