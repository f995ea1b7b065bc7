"""The CUDA kernels, executed without a GPU: see cuda_emulation.h."""

import pytest
import torch
from scipy.stats import rankdata

from corrdet.ops import reference

KINDS = ("iou", "giou", "diou", "ciou")
ORDERS = ("forward", "reverse", "random")
FAULTS = {
    1: "race between a write and a read|read before any write|race between a read and a write",
    2: "out of bounds: result\\[16\\] of 16",
    3: "read before any write: shared memory\\[3\\]",
    4: "divergent barrier",
    5: "race between two writes: result",
    6: "race between an atomic addition and a read|race between an atomic addition and another",
}


def random_boxes(n, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=generator, dtype=dtype) * 20
    sizes = torch.randn(n, 2, generator=generator, dtype=dtype) * 4 + 5  # some inverted
    boxes = torch.cat([corners, corners + sizes], 1)
    boxes[n // 2 :: 7] = boxes[0].clone()
    return boxes


def random_rows(rows, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, n, generator=generator, dtype=dtype)
    values[:, 1::3] = values[:, :1]  # ties
    return values


def close(actual, expected):
    tolerance = 1e-10 if actual.dtype == torch.float64 else 1e-5
    scale = expected[expected.isfinite()].abs().max() if expected.isfinite().any() else 0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=float(tolerance * scale), equal_nan=True
    )


@pytest.mark.parametrize("order", ORDERS)
def test_emulation_runs_a_correct_kernel(emulator, order):
    message, result = emulator.faulty(0, order)
    assert message == ""
    assert result.tolist() == list(range(7, -1, -1)) * 2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_emulation_finds_faults(emulator, fault, order):
    message, _ = emulator.faulty(fault, order)
    assert message
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        raise RuntimeError(message)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, m, grid", [(1, 1, 8), (5, 700, 2), (300, 7, 8), (33, 65, 1)])
def test_pairwise_iou(emulator, n, m, grid, kind, order, dtype):
    boxes1 = random_boxes(n, dtype, 0).requires_grad_()
    boxes2 = random_boxes(m, dtype, 1)
    boxes2[0] = boxes1.detach()[0]
    expected = reference.pairwise_iou(boxes1, boxes2, kind)
    close(emulator.pairwise_iou(boxes1, boxes2, kind, order=order, grid=grid), expected.detach())

    upstream = torch.randn(n, m, generator=torch.Generator().manual_seed(2), dtype=dtype)
    (gradient,) = torch.autograd.grad(expected, boxes1, upstream)
    for grad in (upstream, upstream.t().contiguous().t()):
        actual = emulator.pairwise_iou_backward(grad, boxes1, boxes2, kind, order=order, grid=grid)
        close(actual, gradient)


def test_pairwise_iou_backward_in_chunks(emulator):
    boxes1 = random_boxes(3, torch.float64, 0).requires_grad_()
    boxes2 = random_boxes(2500, torch.float64, 1)
    expected = reference.pairwise_iou(boxes1, boxes2, "giou")
    upstream = torch.rand_like(expected)
    (gradient,) = torch.autograd.grad(expected, boxes1, upstream)
    actual = emulator.pairwise_iou_backward(upstream, boxes1, boxes2, "giou", order="random")
    close(actual, gradient)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, grid", [(1, 8), (1000, 2)])
def test_elementwise_iou(emulator, n, grid, kind, dtype):
    boxes = [random_boxes(n, dtype, seed).requires_grad_() for seed in (0, 1)]
    expected = reference.elementwise_iou(*boxes, kind)
    upstream = torch.linspace(-1, 2, n, dtype=dtype)
    gradients = torch.autograd.grad(expected, boxes, upstream)
    ious, *actual = emulator.elementwise_iou(upstream, *boxes, kind, order="random", grid=grid)
    close(ious, expected.detach())
    for mine, theirs in zip(actual, gradients, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("strength", (1e-12, 1e-3, 3e-2, 0.3, 1e3))
@pytest.mark.parametrize("n, threads", [(1, 32), (2, 32), (31, 32), (200, 96), (500, 64)])
def test_soft_rank(emulator, n, threads, strength, order, dtype):
    options = {"order": order, "threads": threads, "grid": 2}
    values = random_rows(3, n, dtype).requires_grad_()
    ranks, permutation, pools = emulator.soft_rank(values.detach(), strength, **options)
    if strength == 1e-12:  # where the reference's rounding errors show
        expected = torch.from_numpy(rankdata(values.detach(), axis=1)).to(dtype)
    else:
        expected = reference.soft_rank(values, strength)
    close(ranks, expected.detach())
    upstream = torch.randn(3, n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    actual = emulator.soft_rank_backward(upstream, permutation, pools, strength, **options)
    cpu = torch.ops.corrdet.soft_rank_backward(upstream, permutation, pools, strength)
    close(actual, cpu)
    if strength > 1e-12:
        close(actual, torch.autograd.grad(expected, values, upstream)[0])


@pytest.mark.parametrize("threads", (32, 160, 768))
def test_soft_rank_of_a_long_row(emulator, threads):
    # Steps and slopes on all scales, so that pools form at every level of the merging.
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(0, 1, 2000), torch.full((1000,), 0.5)
    values = torch.cat([*steps, torch.rand(1999, generator=generator)])[None]
    for strength in (1e-5, 2e-4, 1e-3):
        ranks, _, pools = emulator.soft_rank(values, strength, threads=threads, order="random")
        expected, _, expected_pools = torch.ops.corrdet.soft_rank(values, strength)
        close(ranks, expected)
        assert torch.equal(pools, expected_pools)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_soft_rank_of_undefined_rows(emulator, bad):
    values = random_rows(3, 100, torch.float32)
    values[1, 17] = bad
    ranks, permutation, pools = emulator.soft_rank(values, 0.1, grid=1)
    assert ranks.isnan().all(1).tolist() == [False, True, False]
    assert ranks.isnan().any(1).tolist() == [False, True, False]
    gradient = emulator.soft_rank_backward(ranks, permutation, pools, 0.1, grid=1)
    assert gradient.isnan().all(1).tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False]


STEP_LOSSES = ("average_precision", "step", "step_negatives", "rank_sort", "alrp")
SIZES = [(1, 0), (0, 5), (5, 0), (30, 400), (40, 9000)]


def random_samples(positives, negatives, dtype, scale=1.0, ties=False, loss=None):
    """Logits, targets (IoUs for rank_sort), and the positives' IoUs."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor([1.0] * positives + [0.0] * negatives + [-1.0] * 3)
    targets = targets[torch.randperm(len(targets), generator=generator)].double()
    logits = torch.randn(len(targets), generator=generator, dtype=torch.float64) * scale
    ious = torch.rand(positives, generator=generator, dtype=torch.float64) * 0.9 + 0.1
    if ties:
        logits, ious = (logits * 2).round() / 2, (ious * 5).ceil() / 5
    if loss == "rank_sort":
        targets = targets.masked_scatter(targets == 1, ious)
    return logits.to(dtype), targets, ious


def compare_step(emulator, dtype, loss, size, scale=1.0, ties=False, **options):
    logits, targets, ious = random_samples(*size, dtype, scale, ties, loss)
    localization = 2 * ious if loss == "alrp" else None
    actual = emulator.step_error(logits, targets, loss, 0.7, localization, **options)
    logits.requires_grad_()
    first, second = reference.step_error(logits, targets, loss, 0.7, localization)
    close(actual[0], torch.stack([first, second]).detach())
    close(actual[1][0], torch.autograd.grad(first, logits, retain_graph=True)[0])
    if loss == "rank_sort" and len(ious):
        close(actual[1][1], torch.autograd.grad(second, logits)[0])
    if loss == "alrp" and len(ious):
        localization.requires_grad_()
        second = reference.step_error(logits, targets, loss, 0.7, localization)[1]
        close(actual[2], torch.autograd.grad(second, localization)[0].to(dtype))


def compare_smooth(emulator, dtype, distance, balance, with_ious, size, scale=1.0, ties=False,
                   **options):  # fmt: skip
    logits, targets, ious = random_samples(*size, dtype, scale, ties)
    arguments = (distance, balance, 8.0, 0.5, ious if with_ious else None)
    actual = emulator.smooth_error(logits, targets, *arguments, **options)
    logits.requires_grad_()
    expected = reference.smooth_error(logits, targets, *arguments)
    close(actual[0], expected.detach()[None])
    close(actual[1], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("loss", STEP_LOSSES)
def test_step_error(emulator, loss, dtype):
    for size, order, ties in zip(SIZES, ORDERS + ORDERS, (False, True) * 3, strict=False):
        compare_step(emulator, dtype, loss, size, ties=ties, order=order, grid=2)
    compare_step(emulator, dtype, loss, (20, 300), scale=1000.0, order="random")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("with_ious", (False, True))
@pytest.mark.parametrize("distance, balance", [("cross_entropy", "rank"), ("sigmoid", "negatives")])
def test_smooth_error(emulator, distance, balance, with_ious, dtype):
    loss = distance, balance, with_ious
    for size, order, ties in zip(SIZES, ORDERS + ORDERS, (False, True) * 3, strict=False):
        for most_cells in (0, 1024):  # pairs one by one, and cells
            options = {"ties": ties, "order": order, "grid": 2, "most_cells": most_cells}
            compare_smooth(emulator, dtype, *loss, size, **options)
    compare_smooth(emulator, dtype, *loss, (20, 300), scale=1000.0, order="random")


def test_positives_of_several_sorted_tiles(emulator):
    for count in (513, 1300):  # an odd and an even number of merges
        compare_step(emulator, torch.float32, "alrp", (count, 50), ties=True, order="random")


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_undefined_samples(emulator, bad):
    logits, targets, ious = random_samples(5, 60, torch.float32)
    wrong = [
        (logits.index_fill(0, (targets == 0).nonzero()[3], bad), targets, ious),
        (logits, targets.masked_fill(targets == 1, 2.0), ious),
        (logits, targets, ious[:-1]),
    ]
    for arguments in wrong:
        *samples, values = arguments
        for results in (
            emulator.step_error(*samples, "alrp", 1.0, values),
            emulator.smooth_error(*samples, "sigmoid", "rank", 8.0, 0.5, values, most_cells=256),
        ):
            assert all(result.isnan().all() for result in results)
    value, gradient = emulator.smooth_error(
        logits, targets, "sigmoid", "rank", 8.0, 0.5, ious + 1, most_cells=256
    )
    assert value.isnan() and gradient.isnan().all()


def test_order_of_atomic_additions_does_not_matter(emulator):
    logits, targets, ious = random_samples(30, 3000, torch.float64)
    results = [
        (
            *emulator.step_error(logits, targets, "alrp", 1.0, ious, order=order),
            *emulator.smooth_error(
                logits, targets, "sigmoid", "rank", 8.0, 0.5, ious, most_cells=256, order=order
            ),
        )
        for order in ORDERS
    ]
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


# Each kernel as often as it has barriers, with two rows or two tiles for one block, so that those
# at the end of a round count too. Without any one of them a thread must be seen to come too early.
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(4))
def test_every_barrier_of_pairwise_iou_backward_is_needed(emulator, barrier, order):
    boxes1, boxes2 = random_boxes(40, torch.float32, 0), random_boxes(70, torch.float32, 1)
    arguments = torch.ones(40, 70), boxes1, boxes2, "iou"
    # Of one item: 0 and 2 after a tile is loaded, 1 between the tiles, 3 before the last sums.
    emulator.pairwise_iou_backward(*arguments, order=order, grid=1)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulator.pairwise_iou_backward(*arguments, order=order, grid=1, skip_barrier=barrier)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(8))
def test_every_barrier_of_soft_rank_is_needed(emulator, barrier, order):
    # 64 threads merge in 6 steps, with a barrier before each, then one before and after the ranks.
    values = torch.linspace(0, 1, 200).repeat(2, 1)
    emulator.soft_rank(values, 1.0, order=order, grid=1)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulator.soft_rank(values, 1.0, order=order, grid=1, skip_barrier=barrier)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(2))
def test_every_barrier_of_soft_rank_backward_is_needed(emulator, barrier, order):
    values = torch.linspace(0, 1, 200).repeat(2, 1)
    _, *saved = emulator.soft_rank(values, 1.0)
    emulator.soft_rank_backward(values, *saved, 1.0, order=order, grid=1)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulator.soft_rank_backward(values, *saved, 1.0, order=order, grid=1, skip_barrier=barrier)


@pytest.mark.parametrize("order", ORDERS)
def test_every_barrier_of_sums_and_scans_is_needed(emulator, order):
    # compact_kernel, the second launch: a sum in 10 barriers, then a scan in 18, the last of which
    # is for the next use of the shared memory: the second of two blocks' samples.
    logits, targets, _ = random_samples(30, 5000, torch.float32)
    options = {"order": order, "grid": 1, "threads": 1}
    emulator.step_error(logits, targets, "step", 1.0, **options)
    for barrier in range(28):
        with pytest.raises(RuntimeError, match="race|before any write"):
            emulator.step_error(logits, targets, "step", 1.0, skip_barrier=barrier, **options)


@pytest.mark.parametrize("barrier", range(2))
def test_every_barrier_of_the_tile_sort_is_needed(emulator, barrier):
    # Between loading and sorting a tile, and before the next one is loaded.
    logits, targets, _ = random_samples(700, 5, torch.float32)
    options = {"order": "random", "grid": 1, "threads": 2}
    emulator.step_error(logits, targets, "step", 1.0, **options)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulator.step_error(logits, targets, "step", 1.0, skip_barrier=barrier, **options)


def test_writes_past_an_output_are_found(emulator):
    boxes = random_boxes(40, torch.float32, 0)
    values = torch.rand(1, 100)
    _, *saved = emulator.soft_rank(values, 0.1)
    calls = [
        lambda **options: emulator.pairwise_iou(boxes, boxes, "iou", **options),
        lambda **options: emulator.pairwise_iou_backward(
            torch.ones(40, 40), boxes, boxes, "iou", **options
        ),
        lambda **options: emulator.elementwise_iou(torch.ones(40), boxes, boxes, "iou", **options),
        lambda **options: emulator.soft_rank(values, 0.1, **options),
        lambda **options: emulator.soft_rank_backward(values, *saved, 0.1, **options),
        lambda **options: emulator.step_error(values[0], values[0].round(), "step", 1.0, **options),
        lambda **options: emulator.smooth_error(
            values[0], values[0].round(), "sigmoid", "rank", 8.0, 0.5, most_cells=256, **options
        ),
    ]
    for call in calls:
        call()
        with pytest.raises(RuntimeError, match="out of bounds"):
            call(missing=1)
