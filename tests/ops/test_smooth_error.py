"""smooth_error against its twin, pair by pair, and what it promises."""

import math

import pytest
import torch

from corrdet.ops import smooth_error
from corrdet.ops.kernels.smooth_error import BALANCES, DISTANCES
from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, assert_near, samples
from tests.helpers.pairwise_errors import (
    PAIRWISE_ERRORS,
    SIZES,
    SMOOTH_LOSSES,
    compare_emulated_smooth,
    compare_pairwise_error,
    emulate_smooth,
    run_smooth,
)

pytestmark = pytest.mark.slow

ERROR = PAIRWISE_ERRORS["smooth_error"]


def ape(logits, labels, ious):
    return smooth_error(logits, labels, "cross_entropy", "rank", 8.0, 0.5, ious, True)


@pytest.mark.parametrize("loss", SMOOTH_LOSSES, ids=str)
@pytest.mark.parametrize("ties", (False, True), ids=("", "ties"))
@pytest.mark.parametrize("scale", (1.0, 5.0, 1000.0))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_reference(size, scale, ties, loss, device):
    for dtype in DTYPES[:2]:
        for lam, delta in ((8.0, 0.5), (1.5, 4.0)):
            inputs = samples(*size, dtype=dtype, device=device, scale=scale, ties=ties)
            compare_pairwise_error(ERROR, *inputs, loss, lam, delta)


def test_negatives_on_the_edge_do_not_count(device):
    logits = torch.tensor([1.0, 0.5, 0.5, 3.0], dtype=torch.float64, device=device).repeat(200)
    labels = torch.tensor([1, 0, 0, 0], device=device).repeat(200)
    inputs = logits, labels, torch.ones(200, dtype=torch.float64, device=device)
    loss = ("cross_entropy", "negatives", False)
    compare_pairwise_error(ERROR, *inputs, loss)
    (gradient,) = run_smooth(smooth_error, *inputs, loss)[1:]
    assert gradient[1::4].eq(0).all() and gradient[3::4].gt(0).all()


@pytest.mark.parametrize("with_iou_weights", (False, True))
def test_weight_by_iou(with_iou_weights, device):
    inputs = samples(30, 2000, device=device)
    compare_pairwise_error(
        ERROR, *inputs, ("cross_entropy", "rank", True), 8.0, 0.5, with_iou_weights
    )


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(4, 20), (0, 3)], ids=str)
def test_opcheck(size, dtype, device):
    logits, labels, ious = samples(*size, dtype=dtype, device=device)
    logits.requires_grad_()
    for distance, balance, with_ious in SMOOTH_LOSSES:
        options = (distance, balance, 8.0, 0.5, ious if with_ious else None, True)
        torch.library.opcheck(torch.ops.corrdet.smooth_error, (logits, labels, *options))


def test_more_than_2_to_the_31_pairs():
    """Against sums that do without pairs: with equal negatives a single one can be weighted."""
    positives = torch.linspace(-1, 1, 3000, dtype=torch.float64)
    logits = torch.cat([positives, torch.full((1_000_000,), 0.25, dtype=torch.float64)])
    labels = torch.cat([torch.ones(3000), torch.zeros(1_000_000)])
    value, gradient = run_smooth(smooth_error, logits, labels, None, SMOOTH_LOSSES[0])
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


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("with_ious", (False, True))
@pytest.mark.parametrize("distance, balance", [("cross_entropy", "rank"), ("sigmoid", "negatives")])
def test_emulated(emulator, distance, balance, with_ious, dtype):
    loss = distance, balance, with_ious
    sizes = [(1, 0), (0, 5), (5, 0), (30, 400), (40, 9000)]
    for size, order, ties in zip(sizes, ORDERS + ORDERS, (False, True) * 3, strict=False):
        for most_cells in (0, -1):  # pairs one by one, and cells
            options = {"order": order, "grid": 2, "most_cells": most_cells}
            compare_emulated_smooth(emulator, *samples(*size, dtype, ties=ties), loss, **options)
    inputs = samples(20, 300, dtype, scale=1000.0)
    compare_emulated_smooth(emulator, *inputs, loss, order="random")


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
        results = emulate_smooth(emulator, *inputs, "sigmoid", "rank", 8.0, 0.5, values, 256)
        assert all(result.isnan().all() for result in results)


def test_emulated_order_of_atomic_additions_does_not_matter(emulator):
    logits, labels, ious = samples(30, 3000)
    arguments = logits, labels, "sigmoid", "rank", 8.0, 0.5, ious, 256
    results = [emulate_smooth(emulator, *arguments, order=order) for order in ORDERS]
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_emulated_writes_past_an_output_are_found(emulator):
    logits, labels, ious = samples(10, 90)
    arguments = logits, labels, "sigmoid", "rank", 8.0, 0.5, ious, 256
    emulate_smooth(emulator, *arguments)
    with pytest.raises(RuntimeError, match="out of bounds: output"):
        emulate_smooth(emulator, *arguments, missing=1)
