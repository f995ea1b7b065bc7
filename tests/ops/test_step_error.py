"""step_error against its twin, pair by pair, and what it promises."""

import math

import pytest
import torch

from corrdet.ops import step_error
from corrdet.ops.kernels.step_error import STEP_LOSSES
from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, assert_near, samples
from tests.helpers.pairwise_errors import (
    PAIRWISE_ERRORS,
    SIZES,
    compare_emulated_step,
    compare_pairwise_error,
    emulate_step,
    run_step,
)

ERROR = PAIRWISE_ERRORS["step_error"]


@pytest.mark.parametrize("loss", STEP_LOSSES)
@pytest.mark.parametrize("ties", (False, True), ids=("", "ties"))
@pytest.mark.parametrize("scale", (1.0, 5.0, 1000.0))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_reference(size, scale, ties, loss, device):
    for dtype in DTYPES[:2]:
        for delta in (1.0, 0.3):
            inputs = samples(*size, dtype=dtype, device=device, scale=scale, ties=ties)
            compare_pairwise_error(ERROR, *inputs, loss, delta)


def test_negatives_on_the_edge_do_not_count(device):
    logits = torch.tensor([1.0, 0.5, 0.5, 3.0], device=device).repeat(200)
    labels = torch.tensor([1, 0, 0, 0], device=device).repeat(200)
    ious = torch.ones(200, device=device)
    value, _, gradient, _ = run_step(step_error, logits, labels, ious, "step_negatives", 0.5)
    assert value == 1 and gradient[1::4].eq(0).all()


def test_any_dtype_of_targets(device):
    logits, labels, ious = samples(20, 300, device=device, ignored=0)
    expected = run_step(step_error, logits, labels, ious, "average_precision")
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32, torch.float32, torch.bfloat16):
        actual = run_step(step_error, logits, labels.to(dtype), ious, "average_precision")
        assert all(map(torch.equal, actual, expected))


def test_localization_gradcheck(device):
    logits, labels, ious = samples(6, 30, device=device)
    assert torch.autograd.gradcheck(
        lambda x: step_error(logits, labels, "alrp", 1.0, x)[1], ious.requires_grad_()
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile(backend, device):
    logits, labels, _ = samples(10, 90, dtype=torch.float32, device=device)
    logits.requires_grad_()

    def loss(x):
        ranking, sorting = step_error(x * 2, labels, "rank_sort", 0.5)
        _, localization = step_error(x, labels, "alrp", 1.0, x[positives].sigmoid())
        return ranking + sorting + localization

    positives = (labels == 1).nonzero()[:, 0]
    (expected,) = torch.autograd.grad(loss(logits), logits)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    (actual,) = torch.autograd.grad(compiled(logits), logits)
    assert_near(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(4, 20), (0, 3)], ids=str)
def test_opcheck(size, dtype, device):
    logits, labels, ious = samples(*size, dtype=dtype, device=device)
    ops = torch.ops.corrdet
    logits.requires_grad_()
    for loss in STEP_LOSSES:
        localization = ious.to(dtype).requires_grad_() if loss == "alrp" else None
        torch.library.opcheck(ops.step_error, (logits, labels, loss, 1.0, localization))
    rows = torch.randn(2, 5, device=device)
    torch.library.opcheck(ops.weighted_rows, (torch.ones(2, device=device), rows, dtype))


def test_more_than_2_to_the_31_pairs():
    """Against sums that do without pairs: with equal negatives a single one can be weighted."""
    positives = torch.linspace(-1, 1, 3000, dtype=torch.float64)
    logits = torch.cat([positives, torch.full((1_000_000,), 0.25, dtype=torch.float64)])
    labels = torch.cat([torch.ones(3000), torch.zeros(1_000_000)])
    value, _, gradient, _ = run_step(step_error, logits, labels, None, "step")
    over_negatives = ((0.25 - positives) / 2 + 0.5).clamp(0, 1) * 1e6
    pairs = ((positives[None] - positives[:, None]) / 2 + 0.5).clamp(0, 1)
    rank = pairs.sum(1) + 0.5 + over_negatives
    assert_near(value, (over_negatives / rank).mean())
    assert_near(gradient[:3000], -over_negatives / rank / 3000)


def test_more_pairs_than_fit_in_32_bits():
    """50 000 x 50 000, all logits alike: every other sample counts by a half."""
    count = 50_000
    labels = (torch.arange(2 * count) % 2).to(torch.int8)
    rank = 1 + (count - 1) / 2 + count / 2
    precision = (1 + (count - 1) / 2) / rank
    value, _ = step_error(torch.zeros(2 * count), labels, "average_precision", 1.0)
    assert value.item() == pytest.approx(1 - precision, rel=1e-5)


LOGITS, LABELS, ONE = torch.zeros(3), torch.tensor([1, 0, -1]), torch.ones(1)


@pytest.mark.parametrize(
    "loss, delta, localization, error, message",
    [
        ("ap", 1.0, None, ValueError, "loss must be one of .* got 'ap'"),
        ("step", 0, None, ValueError, "delta must be positive.* got 0"),
        ("step", "1", None, TypeError, "delta must be a number, got str"),
        ("step", 1.0, ONE, ValueError, "for, and needed by"),
        ("alrp", 1.0, None, ValueError, "localization None"),
        ("alrp", 1.0, torch.ones(2), ValueError,
         "localization must have one value per positive, 1, got 2"),
        ("alrp", 1.0, ONE[None], ValueError, r"shape \(P,\)"),
    ],
)  # fmt: skip
def test_bad_options(loss, delta, localization, error, message):
    with pytest.raises(error, match=message):
        step_error(LOGITS, LABELS, loss, delta, localization)


def test_targets_of_rank_sort_outside_their_range():
    for bad in (1.5, -0.5, math.nan):
        with pytest.raises(
            ValueError, match=r"targets must be -1 or in \[0, 1\], got .* position 1"
        ):
            step_error(LOGITS, torch.tensor([0.5, bad, 0]), "rank_sort", 1.0)


def test_operators_guard_themselves():
    ops = torch.ops.corrdet
    for arguments in (
        (LOGITS, LABELS, "step", 0.0, None),
        (LOGITS, LABELS, "none", 1.0, None),
        (LOGITS, LABELS, "alrp", 1.0, None),
        (LOGITS, LABELS[:2], "step", 1.0, None),
        (LOGITS[None], LABELS[None], "step", 1.0, None),
    ):
        with pytest.raises(ValueError):
            ops.step_error(*arguments)
    with pytest.raises(ValueError):
        ops.weighted_rows(torch.ones(1), torch.ones(2, 3), torch.float32)


def test_the_names_are_those_of_the_kernels():
    names = ", ".join(map(repr, STEP_LOSSES))
    with pytest.raises(ValueError, match=f"loss must be one of {names}, got 'none'"):
        torch.ops.corrdet.step_error(LOGITS, LABELS, "none", 1.0, None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("loss", STEP_LOSSES)
def test_emulated(emulator, loss, dtype):
    sizes = [(1, 0), (0, 5), (5, 0), (30, 400), (40, 9000)]
    for size, order, ties in zip(sizes, ORDERS + ORDERS, (False, True) * 3, strict=False):
        compare_emulated_step(
            emulator, *samples(*size, dtype, ties=ties), loss, order=order, grid=2
        )
    inputs = samples(20, 300, dtype, scale=1000.0)
    compare_emulated_step(emulator, *inputs, loss, order="random")


def test_emulated_positives_of_several_sorted_tiles(emulator):
    for count in (513, 1300):  # an odd and an even number of merges
        inputs = samples(count, 50, torch.float32, ties=True)
        compare_emulated_step(emulator, *inputs, "alrp", order="random")


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_emulated_undefined_samples(emulator, bad):
    logits, labels, ious = samples(5, 60, torch.float32)
    wrong = [
        (logits.index_fill(0, (labels == 0).nonzero()[3], bad), labels, ious),
        (logits, labels.masked_fill(labels == 1, 2), ious),
        (logits, labels, ious[:-1]),
    ]
    for *inputs, localization in wrong:
        results = emulate_step(emulator, *inputs, "alrp", 1.0, localization)
        assert all(result.isnan().all() for result in results)


def test_emulated_order_of_atomic_additions_does_not_matter(emulator):
    logits, labels, ious = samples(30, 3000)
    results = [emulate_step(emulator, logits, labels, "alrp", 1.0, ious, order=o) for o in ORDERS]
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


# Each kernel as often as it has barriers, with two blocks' work for one, so that those at the end
# of a round count too. Without any one of them a thread must be seen to come too early.
@pytest.mark.parametrize("order", ORDERS)
def test_emulated_every_barrier_of_sums_and_scans_is_needed(emulator, order):
    # compact_kernel, the second launch: a sum in 10 barriers, then a scan in 18, the last of which
    # is for the next use of the shared memory: the second of two blocks' samples.
    logits, labels, _ = samples(30, 5000, torch.float32)
    options = {"order": order, "grid": 1, "launch": 1}
    emulate_step(emulator, logits, labels, "step", 1.0, **options)
    for barrier in range(28):
        with pytest.raises(RuntimeError, match="race|before any write"):
            emulate_step(emulator, logits, labels, "step", 1.0, skip_barrier=barrier, **options)


@pytest.mark.parametrize("barrier", range(2))
def test_emulated_every_barrier_of_the_tile_sort_is_needed(emulator, barrier):
    # Between loading and sorting a tile, and before the next one is loaded.
    logits, labels, _ = samples(700, 5, torch.float32)
    options = {"order": "random", "grid": 1, "launch": 2}
    emulate_step(emulator, logits, labels, "step", 1.0, **options)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulate_step(emulator, logits, labels, "step", 1.0, skip_barrier=barrier, **options)


def test_emulated_writes_past_an_output_are_found(emulator):
    logits, labels, _ = samples(10, 90)
    emulate_step(emulator, logits, labels, "step", 1.0)
    with pytest.raises(RuntimeError, match="out of bounds: output"):
        emulate_step(emulator, logits, labels, "step", 1.0, missing=1)
