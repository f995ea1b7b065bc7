"""step_error and smooth_error against the reference, pair by pair."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from corrdet.ops import reference, smooth_error, step_error
from tests.ops.cases import assert_near

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STEP_LOSSES = ("average_precision", "step", "step_negatives", "rank_sort", "alrp")
SMOOTH_LOSSES = [
    (distance, balance, with_ious)
    for distance in ("cross_entropy", "sigmoid")
    for balance in ("rank", "negatives")
    for with_ious in (False, True)
]
SIZES = [(1, 0), (0, 5), (1, 1), (5, 0), (2, 3), (40, 500), (200, 3000), (3, 20000)]


def samples(positives, negatives, dtype=torch.float64, device="cpu", scale=1.0, ties=False, seed=0,
            ignored=3):  # fmt: skip
    """Logits, labels and the positives' IoUs; with `ties` many of each are equal."""
    generator = torch.Generator().manual_seed(seed)
    count = positives + negatives + ignored
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * ignored)
    labels = labels[torch.randperm(count, generator=generator)]
    logits = torch.randn(count, generator=generator, dtype=torch.float64)
    logits = logits * scale - 1.5 * (labels != 1)
    ious = torch.rand(positives, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    if ties:
        logits, ious = (logits * 2).round() / 2, (ious * 5).ceil() / 5
    logits = logits.to(dtype)
    return logits.to(device), labels.to(device), ious.to(device)


def run_step(function, logits, labels, ious, loss, delta=1.0):
    """Values and gradients of all parts, and of a weighted sum of them."""
    logits = logits.detach().requires_grad_()
    targets, localization = labels, None
    if loss == "rank_sort":
        targets = labels.double().masked_scatter(labels == 1, ious)
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
    logits = logits.detach().requires_grad_()
    distance, balance, with_ious = loss
    options = {"ious": ious, "weight_by_iou": weight_by_iou} if with_ious else {}
    value = function(logits, labels, distance, balance, lam, delta, **options)
    return value.detach(), *torch.autograd.grad(2 * value, logits)


def compare(run, function, twin, logits, labels, ious, *options):
    actual = run(function, logits, labels, ious, *options)
    expected = run(twin, logits.double().cpu(), labels.cpu(), ious.cpu(), *options)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert actual[0].dtype == wide and actual[-1].device == logits.device
    for mine, theirs in zip(actual, expected, strict=True):
        tolerance = None if mine.dtype in DTYPES[2:] else 1e-10 if wide == torch.float64 else 1e-5
        assert_near(mine, theirs, tolerance)


@pytest.mark.parametrize("loss", STEP_LOSSES)
@pytest.mark.parametrize("ties", (False, True), ids=("", "ties"))
@pytest.mark.parametrize("scale", (1.0, 5.0, 1000.0))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_step_against_reference(size, scale, ties, loss, device):
    for dtype in DTYPES[:2]:
        for delta in (1.0, 0.3):
            inputs = samples(*size, dtype=dtype, device=device, scale=scale, ties=ties)
            compare(run_step, step_error, reference.step_error, *inputs, loss, delta)


@pytest.mark.parametrize("loss", SMOOTH_LOSSES, ids=str)
@pytest.mark.parametrize("ties", (False, True), ids=("", "ties"))
@pytest.mark.parametrize("scale", (1.0, 5.0, 1000.0))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_smooth_against_reference(size, scale, ties, loss, device):
    for dtype in DTYPES[:2]:
        for lam, delta in ((8.0, 0.5), (1.5, 4.0)):
            inputs = samples(*size, dtype=dtype, device=device, scale=scale, ties=ties)
            compare(run_smooth, smooth_error, reference.smooth_error, *inputs, loss, lam, delta)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("size", [(0, 5), (3, 4), (40, 2000)], ids=str)
def test_halves_are_computed_in_float32(size, dtype, device):
    inputs = samples(*size, dtype=dtype, device=device)
    for loss in STEP_LOSSES:
        compare(run_step, step_error, reference.step_error, *inputs, loss)
    for loss in SMOOTH_LOSSES:
        compare(run_smooth, smooth_error, reference.smooth_error, *inputs, loss)


def test_positives_far_apart(device):
    """Windows of positives that share no cell, with negatives between, above and below them."""
    logits, labels, ious = samples(6, 4000, device=device)
    logits = logits + 400 * torch.arange(len(logits), device=device).remainder(7)
    for loss in STEP_LOSSES:
        compare(run_step, step_error, reference.step_error, logits, labels, ious, loss)
    for loss in SMOOTH_LOSSES:
        compare(run_smooth, smooth_error, reference.smooth_error, logits, labels, ious, loss)


def test_clustered_positives(device):
    """More edges within one cell than are compared at once."""
    logits, labels, ious = samples(60, 3000, device=device)
    logits = torch.where(labels == 1, 0.3 + logits / 1000, logits)
    for loss in STEP_LOSSES:
        compare(run_step, step_error, reference.step_error, logits, labels, ious, loss)
    for loss in SMOOTH_LOSSES:
        compare(run_smooth, smooth_error, reference.smooth_error, logits, labels, ious, loss)


def test_negatives_on_the_edge_do_not_count(device):
    logits = torch.tensor([1.0, 0.5, 0.5, 3.0], dtype=torch.float64, device=device)
    labels = torch.tensor([1, 0, 0, 0], device=device)
    logits, labels = logits.repeat(200), labels.repeat(200)
    inputs = logits, labels, torch.ones(200, dtype=torch.float64, device=device)
    compare(run_smooth, smooth_error, reference.smooth_error, *inputs, SMOOTH_LOSSES[2])
    (gradient,) = run_smooth(smooth_error, *inputs, SMOOTH_LOSSES[2])[1:]
    assert gradient[1::4].eq(0).all() and gradient[3::4].gt(0).all()
    inputs = logits.float(), labels, torch.ones(200, device=device)
    value, _, gradient, _ = run_step(step_error, *inputs, "step_negatives", 0.5)
    assert value == 1 and gradient[1::4].eq(0).all()


@pytest.mark.parametrize("with_iou_weights", (False, True))
def test_weight_by_iou(with_iou_weights, device):
    inputs = samples(30, 2000, device=device)
    options = (SMOOTH_LOSSES[1], 8.0, 0.5, with_iou_weights)
    compare(run_smooth, smooth_error, reference.smooth_error, *inputs, *options)


def test_any_dtype_of_targets(device):
    logits, labels, ious = samples(20, 300, device=device, ignored=0)
    expected = run_step(step_error, logits, labels, ious, "average_precision")
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32, torch.float32, torch.bfloat16):
        actual = run_step(step_error, logits, labels.to(dtype), ious, "average_precision")
        assert all(map(torch.equal, actual, expected))


def test_any_strides(device):
    logits, labels, ious = samples(20, 300, device=device)
    wide_logits, wide_labels = torch.stack([logits, -logits], 1), torch.stack([labels, labels], 1)
    wide_ious = torch.stack([ious, ious], 1)
    strided = wide_logits[:, 0], wide_labels[:, 0], wide_ious[:, 0]
    for loss in STEP_LOSSES:
        expected = run_step(step_error, logits, labels, ious, loss)
        assert all(map(torch.equal, run_step(step_error, *strided, loss), expected))
    for loss in SMOOTH_LOSSES:
        expected = run_smooth(smooth_error, logits, labels, ious, loss)
        assert all(map(torch.equal, run_smooth(smooth_error, *strided, loss), expected))


@pytest.mark.parametrize("size", [(0, 0), (0, 7)], ids=str)
def test_no_positive(size, device):
    logits, labels, ious = samples(*size, device=device, ignored=1)
    for loss in STEP_LOSSES:
        for result in run_step(step_error, logits, labels, ious, loss):
            assert result.eq(0).all()
    for loss in SMOOTH_LOSSES:
        for result in run_smooth(smooth_error, logits, labels, ious, loss):
            assert result.eq(0).all()


@pytest.mark.parametrize("extreme", (1e4, -1e4))
@pytest.mark.parametrize("which", (1, 0))
def test_huge_logits(which, extreme, device):
    for dtype in DTYPES:
        logits, labels, ious = samples(10, 3000, dtype=dtype, device=device)
        logits[(labels == which).nonzero()[:3, 0]] = extreme
        for loss in STEP_LOSSES:
            assert all(r.isfinite().all() for r in run_step(step_error, logits, labels, ious, loss))
        for loss in SMOOTH_LOSSES:
            results = run_smooth(smooth_error, logits, labels, ious, loss)
            assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("size", [(10, 50), (10, 3000)], ids=str)
def test_undefined_logits(size, bad, device):
    for label in (1, 0, -1):
        logits, labels, ious = samples(*size, device=device)
        logits[(labels == label).nonzero()[1, 0]] = bad
        undefined = label >= 0
        for loss in STEP_LOSSES:
            results = run_step(step_error, logits, labels, ious, loss)
            parts = results if loss in ("rank_sort", "alrp") else results[:1] + results[2:]
            assert all(result.isnan().all() == undefined for result in parts)
            assert all(result.isnan().any() == undefined for result in parts)
        for loss in SMOOTH_LOSSES:
            results = run_smooth(smooth_error, logits, labels, ious, loss)
            assert all(result.isnan().all() == undefined for result in results)
            assert all(result.isnan().any() == undefined for result in results)


def test_gradcheck(device):
    # The one whose balance does not depend on the logits, so that the update is a gradient.
    logits, labels, _ = samples(6, 30, device=device)
    logits.requires_grad_()

    def loss(x):
        return smooth_error(x, labels, balance="negatives", lam=2.0, delta=3.0)

    assert torch.autograd.gradcheck(loss, logits)
    logits, labels, _ = samples(20, 1500, device=device)
    logits, direction = logits.requires_grad_(), torch.linspace(-1, 1, len(logits)).to(logits)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    step = 1e-6
    difference = loss(logits + step * direction) - loss(logits - step * direction)
    assert_near(difference / (2 * step), (gradient * direction).sum(), 1e-6)


def test_localization_gradcheck(device):
    logits, labels, ious = samples(6, 30, device=device)
    assert torch.autograd.gradcheck(
        lambda x: step_error(logits, labels, "alrp", 1.0, x)[1], ious.requires_grad_()
    )


@pytest.mark.parametrize("size", [(30, 500), (300, 60000)], ids=str)
def test_results_do_not_depend_on_threads(size, device):
    inputs = samples(*size, dtype=torch.float32, device=device)

    def run(_=None):
        results = [run_step(step_error, *inputs, loss) for loss in STEP_LOSSES]
        results += [run_smooth(smooth_error, *inputs, loss) for loss in SMOOTH_LOSSES]
        return [tensor for result in results for tensor in result]

    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 2, 5):
            torch.set_num_threads(number)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:
        results += pool.map(run, range(6))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile(backend, device):
    logits, labels, ious = samples(10, 90, dtype=torch.float32, device=device)
    logits.requires_grad_()

    def loss(x):
        ranking, sorting = step_error(x * 2, labels, "rank_sort", 0.5)
        _, localization = step_error(x, labels, "alrp", 1.0, x[labels_places].sigmoid())
        return ranking + sorting + localization + smooth_error(x * 2, labels, ious=ious)

    labels_places = (labels == 1).nonzero()[:, 0]
    (expected,) = torch.autograd.grad(loss(logits), logits)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    (actual,) = torch.autograd.grad(compiled(logits), logits)
    assert_near(actual, expected)


def test_autocast(device):
    logits, labels, ious = samples(10, 90, dtype=torch.bfloat16, device=device)
    expected = step_error(logits, labels, "step")[0], smooth_error(logits, labels, ious=ious)
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = step_error(logits, labels, "step")[0], smooth_error(logits, labels, ious=ious)
    assert all(value.dtype == torch.float32 for value in actual)
    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(4, 20), (0, 3)], ids=str)
def test_opcheck(size, dtype, device):
    logits, labels, ious = samples(*size, dtype=dtype, device=device)
    ops = torch.ops.corrdet
    logits.requires_grad_()
    for loss in STEP_LOSSES:
        localization = ious.to(dtype).requires_grad_() if loss == "alrp" else None
        torch.library.opcheck(ops.step_error, (logits, labels, loss, 1.0, localization))
    for distance, balance, with_ious in SMOOTH_LOSSES:
        options = (distance, balance, 8.0, 0.5, ious if with_ious else None, True)
        torch.library.opcheck(ops.smooth_error, (logits, labels, *options))
    rows = torch.randn(2, 5, device=device)
    torch.library.opcheck(ops.weighted_rows, (torch.ones(2, device=device), rows, dtype))


def test_second_derivative_is_refused(device):
    logits, labels, _ = samples(5, 20, device=device)
    logits.requires_grad_()
    value = smooth_error(logits, labels)
    (gradient,) = torch.autograd.grad(value.square(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="can be differentiated once, not twice"):
        gradient.square().sum().backward()


MEMORY = """
import resource, sys, torch
from corrdet.ops import smooth_error, step_error
torch.set_num_threads(2)
positives, negatives = 20_000, 3_000_000
logits = torch.randn(positives + negatives)
labels = (torch.arange(len(logits)) < positives).to(torch.int8)
ious = torch.rand(positives)
def run(count):
    places = slice(positives - min(positives, count), positives + count)
    x, y = logits[places].requires_grad_(), labels[places]
    if sys.argv[1] == "step":
        sum(step_error(x, y, "alrp", 1.0, ious[-int(y.sum()):])).backward()
    else:
        smooth_error(x, y, ious=ious[-int(y.sum()):]).backward()
run(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(negatives)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize("op", ("step", "smooth"))
def test_memory(op):
    """64 bytes per sample and 256 per positive, where the matrix would take 240 gigabytes."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, op], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 64 * 3_020_000 + 256 * 20_000


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
    value, gradient = run_smooth(smooth_error, logits, labels, None, SMOOTH_LOSSES[0])
    counted = 0.25 > positives - 0.5
    error = counted * (8 * (0.25 - positives)).sigmoid() * 1e6
    among = (8 * (positives[None] - positives[:, None])).sigmoid()
    rank = (among * (positives[None] > (positives - 0.5)[:, None])).sum(1) + 0.5 + error
    pair_loss = torch.nn.functional.softplus(8 * (0.25 - positives)) / 8 * 1e6
    assert_near(value, (counted * pair_loss / rank).mean())
    assert_near(gradient[3000:].sum() / 2, (error / rank).mean())


LOGITS, LABELS = torch.zeros(3), torch.tensor([1, 0, -1])


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
        step_error(*arguments, "step")
    with pytest.raises(error, match=message):
        smooth_error(*arguments)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    "function, options, error, message",
    [
        (step_error, {"loss": "ap"}, ValueError, "loss must be one of .* got 'ap'"),
        (step_error, {"loss": "step", "delta": 0}, ValueError, "delta must be positive.* got 0"),
        (step_error, {"loss": "step", "delta": "1"}, TypeError, "delta must be a float, got str"),
        (step_error, {"loss": "step", "localization": ONE}, ValueError, "for, and needed by"),
        (step_error, {"loss": "alrp"}, ValueError, "localization None"),
        (step_error, {"loss": "alrp", "localization": torch.ones(2)}, ValueError,
         "localization must have one value per positive, 1, got 2"),
        (step_error, {"loss": "alrp", "localization": ONE[None]}, ValueError, r"shape \(P,\)"),
        (smooth_error, {"distance": "hinge"}, ValueError, "distance must be one of"),
        (smooth_error, {"balance": "none"}, ValueError, "balance must be one of"),
        (smooth_error, {"lam": -1.0}, ValueError, "lam must be positive and finite, got -1.0"),
        (smooth_error, {"delta": math.inf}, ValueError, "delta must be positive and finite"),
        (smooth_error, {"ious": torch.ones(2)}, ValueError, "one value per positive, 1, got 2"),
        (smooth_error, {"ious": ONE * 1.5}, ValueError, r"ious must be in \[0, 1\], got 1.5"),
        (smooth_error, {"ious": ONE.int()}, TypeError, "ious must be float16"),
        (smooth_error, {"ious": ONE.to("meta")}, ValueError, "on the device of logits"),
    ],
)  # fmt: skip
def test_bad_options(function, options, error, message):
    with pytest.raises(error, match=message):
        function(LOGITS, LABELS, **options)


def test_targets_of_rank_sort_outside_their_range():
    for bad in (1.5, -0.5, math.nan):
        with pytest.raises(
            ValueError, match=r"targets must be -1 or in \[0, 1\], got .* position 1"
        ):
            step_error(LOGITS, torch.tensor([0.5, bad, 0]), "rank_sort")


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
    for options in (("none", "rank", 1.0, 1.0), ("sigmoid", "none", 1.0, 1.0),
                    ("sigmoid", "rank", 0.0, 1.0), ("sigmoid", "rank", 1.0, math.nan)):  # fmt: skip
        with pytest.raises(ValueError):
            ops.smooth_error(LOGITS, LABELS, *options, None, True)
    with pytest.raises(ValueError):
        ops.weighted_rows(torch.ones(1), torch.ones(2, 3), torch.float32)


def test_more_pairs_than_fit_in_32_bits():
    """50 000 x 50 000, all logits alike: every other sample counts by a half."""
    count = 50_000
    logits = torch.zeros(2 * count)
    labels = (torch.arange(2 * count) % 2).to(torch.int8)
    rank = 1 + (count - 1) / 2 + count / 2
    precision, share = (1 + (count - 1) / 2) / rank, count / 2 / rank
    value, _ = step_error(logits, labels, "average_precision")
    assert value.item() == pytest.approx(1 - precision, rel=1e-5)
    assert smooth_error(logits, labels, "sigmoid").item() == pytest.approx(share, rel=1e-5)
    leaf = logits.requires_grad_()
    smooth_error(leaf, labels, "cross_entropy").backward()
    # Each negative is pushed down by every positive, each positive up by all negatives.
    expected = torch.where(labels == 1, -1.0, 1.0) * (0.5 / rank)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=0)
