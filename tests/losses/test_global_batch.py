"""GLOBAL_BATCH with two real processes, and MEMORY, against one process with the whole batch."""

import os
import traceback
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from corrdet.losses import Criterion, MatchedPredictions, Weight
from corrdet.losses.global_batch import gather_from_processes, remember

# Losses that a whole batch has another value of than the mean over its halves.
CASES = {
    "concordance": ("sigmoid_focal", "giou", "correlation", {"coefficient": "concordance"}),
    "spearman": ("sigmoid_focal", "giou", "correlation", {"coefficient": "spearman"}),
    "both": ("sigmoid_focal", "giou", "correlation", {"gradient": "both"}),
    "levels": ("sigmoid_focal", "giou", "correlation", {"over": "level"}),
    "ap": ("ap", "giou", None, {}),
    "step": ("pairwise_error", "giou", None, {"distance": "step", "balance": "negatives"}),
    "sigmoid": ("pairwise_error", "giou", None, {"distance": "sigmoid"}),
    "ape": ("ape", "giou", None, {}),
    "rank_sort": ("rank_sort", "giou", None, {}),
    "alrp": ("alrp", "giou", None, {}),
}


def batch(part=None, positives=(0, 3, 4, 11, 25), seed=0, spread=2.0):
    """60 samples of 3 classes; part 0 has the first 20, part 1 the others."""
    generator = torch.Generator().manual_seed(seed)
    count = 60
    logits = torch.randn(count, 3, generator=generator, dtype=torch.float64) * spread
    boxes = torch.tensor([10.0, 10, 30, 40]).double().repeat(count, 1)
    boxes = boxes + torch.rand(count, 4, generator=generator, dtype=torch.float64) * 8
    labels = torch.full((count,), 3)
    labels[list(positives)] = torch.tensor(positives, dtype=torch.int64) % 3
    labels[5] = labels[50] = -1
    start, end = {None: (0, 60), 0: (0, 20), 1: (20, 60)}[part]
    indices = torch.tensor([p for p in positives if start <= p < end], dtype=torch.int64)
    return MatchedPredictions(
        logits=logits[start:end].clone().requires_grad_(),
        labels=labels[start:end],
        positives=indices - start,
        boxes=boxes[indices].requires_grad_(),
        gt_boxes=torch.tensor([10.0, 10, 30, 40]).double().repeat(len(indices), 1),
        image_ids=torch.zeros(len(indices), dtype=torch.int64),
        priors=boxes[indices].detach() + 3,
        levels=indices % 2,
        num_levels=3,
    )


def build(name, **changes):
    classification, localization, coupling, options = CASES[name]
    return Criterion(
        classification,
        localization,
        {coupling: 1.0} if coupling else {},
        {coupling or classification: {**options, **changes}},
    )


def relevant(name, losses):
    """The losses that depend on the batch as a whole."""
    if "loss_correlation" in losses:
        return {"correlation": losses["loss_correlation"]}
    names = ["loss_cls", "loss_box_reg"] if name in ("rank_sort", "alrp") else ["loss_cls"]
    return {key: losses[key] for key in names}


def step(criterion, name, matched):
    losses = relevant(name, criterion(matched))
    sum(losses.values()).backward()
    boxes = matched.boxes.grad if matched.boxes.grad is not None else matched.boxes.detach() * 0
    return {key: loss.detach() for key, loss in losses.items()}, matched.logits.grad, boxes


POSITIVES = {
    "both": (0, 3, 4, 11, 25),
    "first alone": (1, 19),
    "second alone": (30,),
    "none": (),
}


WEIGHTS = ("iou", "score", "centerness")


def weighted(by, matched):
    """The localization loss, weighted, and its gradient."""
    criterion = Criterion("sigmoid_focal", "giou", localization_weighted_by=by)
    loss = criterion(matched, 17.0)["loss_box_reg"]
    return loss.detach(), torch.autograd.grad(loss, matched.boxes)[0]


def worker(rank, directory):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    try:
        results = {}
        for case, name, memory in product(POSITIVES, CASES, (0, 2)):
            criterion = build(name, global_batch=True, memory=memory)
            if memory:
                criterion(batch(rank, seed=1))
            results[case, name, memory] = step(criterion, name, batch(rank, POSITIVES[case]))
        for case, by in product(POSITIVES, WEIGHTS):
            results[case, by] = weighted(by, batch(rank, POSITIVES[case]))
        torch.save(results, Path(directory) / f"rank{rank}.pth")
    except Exception:
        (Path(directory) / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # the other process may wait for this one forever
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(worker, (str(directory),), nprocs=2)
    return [torch.load(directory / f"rank{rank}.pth") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", POSITIVES)
def test_two_processes_are_one_with_the_whole_batch(two_processes, case):
    for name, memory in product(CASES, (0, 2)):
        criterion = build(name, memory=memory)
        if memory:
            criterion(batch(seed=1))
        losses, logits, boxes = step(criterion, name, batch(positives=POSITIVES[case]))
        parts = [results[case, name, memory] for results in two_processes]
        for part_losses, _, _ in parts:
            for key, value in losses.items():
                torch.testing.assert_close(part_losses[key], value, msg=f"{name} {key}")
        # DistributedDataParallel takes the mean over the processes.
        logits_gradient = torch.cat([part[1] for part in parts]) / 2
        boxes_gradient = torch.cat([part[2] for part in parts]) / 2
        torch.testing.assert_close(logits_gradient, logits, rtol=1e-6, atol=1e-12, msg=name)
        torch.testing.assert_close(boxes_gradient, boxes, rtol=1e-6, atol=1e-12, msg=name)
        if case == "both":
            assert logits.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", POSITIVES)
@pytest.mark.parametrize("by", WEIGHTS)
def test_weights_are_summed_over_processes(two_processes, case, by):
    """The mean over processes is the weighted sum of all over the sum of all weights."""
    parts = [results[case, by] for results in two_processes]
    loss, gradient = weighted(by, batch(positives=POSITIVES[case]))
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient)


def test_one_process_needs_no_gathering():
    """The same samples, without those that do not count."""
    for name in CASES:
        losses = step(build(name), name, batch())[0]
        gathered = step(build(name, global_batch=True), name, batch())[0]
        for key, value in losses.items():
            torch.testing.assert_close(gathered[key], value, msg=name)


def test_memory_of_correlations():
    criterion = build("concordance", memory=2)
    batches = [batch(seed=seed) for seed in range(4)]
    for index, matched in enumerate(batches):
        loss = criterion(matched)["loss_correlation"]
        before = batches[max(0, index - 2) : index]
        scores = torch.cat([matched.scores, *(other.scores.detach() for other in before)])
        ious = torch.cat([matched.ious, *(other.ious for other in before)])
        x, y = scores - scores.mean(), ious - ious.mean()
        spread = x.square().mean() + y.square().mean() + (scores.mean() - ious.mean()).square()
        expected = 1 - 2 * (x * y).mean() / spread
        torch.testing.assert_close(loss, expected)
        mine = torch.autograd.grad(loss, matched.logits, retain_graph=True)[0]
        torch.testing.assert_close(mine, torch.autograd.grad(expected, matched.logits)[0])


def test_memory_of_rankings_has_negatives_only():
    """Those that counted, of two batches before, as so many more background samples."""
    criterion = build("ap", memory=2)
    kept = []
    for seed in range(4):
        matched = batch(seed=seed)
        loss = criterion(matched)["loss_cls"]
        lowest = matched.logits[matched.positives, matched.classes].min() - 1.0
        labels = matched.binary_labels.flatten()
        logits = matched.logits.flatten()
        expected = Criterion("ap", "giou")(_with_negatives(matched, kept[-2:]))["loss_cls"]
        torch.testing.assert_close(loss, expected)
        kept.append(logits[(labels == 0) & (logits > lowest)].detach())
    state = criterion.state_dict()
    names = [f"state.ap.negatives.{index}[{len(k)}]" for index, k in enumerate(kept[-2:])]
    assert list(state) == names
    assert [len(tensor) for tensor in state.values()] == [len(k) for k in kept[-2:]]


def _with_negatives(matched, kept):
    """The samples that are not ignored, and more negatives, in one class."""
    labels, logits = matched.binary_labels.flatten(), matched.logits.flatten()
    logits = torch.cat([logits[labels >= 0], *kept])[:, None]
    labels = torch.cat([labels[labels >= 0], *(torch.zeros(len(k)) for k in kept)])
    return MatchedPredictions(
        logits=logits,
        labels=1 - labels.long(),  # one class, 0, and background, 1
        positives=(labels == 1).nonzero()[:, 0],
        boxes=matched.boxes,
        gt_boxes=matched.gt_boxes,
        image_ids=matched.image_ids,
    )


@pytest.mark.parametrize("name", CASES)
def test_memory_is_saved_and_restored(name, tmp_path):
    first, other = build(name, memory=2), build(name, memory=2)
    for seed in range(3):
        first(batch(seed=seed))
    torch.save(first.state_dict(), tmp_path / "state.pth")
    other(batch(seed=7))
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    expected = relevant(name, first(batch(seed=5)))
    assert relevant(name, other(batch(seed=5))) == expected
    assert relevant(name, build(name, memory=2)(batch(seed=5))) != expected


def test_nan_negatives_are_not_filtered_out():
    for place in (1, 0):  # a negative, a positive
        matched = batch()
        with torch.no_grad():
            matched.logits[place] = torch.nan
        assert build("ap", memory=1)(matched)["loss_cls"].isnan()


def test_one_process_gathers_nothing():
    tensor = torch.rand(3, 2, requires_grad=True)
    assert gather_from_processes(tensor) is tensor


def test_remember_keeps_no_graph():
    state = {}
    value = torch.rand(3, requires_grad=True)
    assert remember(state, "x", value * 2, 1).shape == (0,)
    assert not state["x"][0].requires_grad
    assert torch.equal(remember(state, "x", value, 1), 2 * value.detach())
    assert len(state["x"]) == 1


def test_options_are_checked():
    for memory in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"^ap.memory must be .*>= 0, got {memory}"):
            build("ap", memory=memory)
    with pytest.raises(ValueError, match="^correlation.global_batch must be True or False, got 1"):
        build("spearman", global_batch=1)


class TestWeight:
    def test_warm_up_and_schedule(self):
        weight = Weight(2.0, warmup_iters=10, schedule=((20, 1.0), (40, 0.5), (60, 0.0)))
        expected = {0: 0, 5: 1, 10: 2, 20: 2, 30: 1.5, 40: 1, 50: 0.5, 60: 0, 1000: 0}
        assert {iteration: weight.at(iteration) for iteration in expected} == expected
        assert Weight(0.3).at(12345) == 0.3

    def test_the_criterion_follows(self):
        weight = Weight(0.5, warmup_iters=4)
        criterion = Criterion("sigmoid_focal", "giou", {"correlation": weight})
        losses = [criterion(batch(), iteration=i)["loss_correlation"].item() for i in range(6)]
        factors = [0, 0.25, 0.5, 0.75, 1, 1]
        assert losses == pytest.approx([factor * losses[-1] for factor in factors])
        with pytest.raises(ValueError, match="correlation changes over the iterations"):
            criterion(batch())

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"value": -1.0}, "weight must be >= 0, got -1.0"),
            ({"warmup_iters": -1}, "warmup_iters must be >= 0, got -1"),
            ({"warmup_iters": 2.5}, "warmup_iters must be a whole number >= 0, got 2.5"),
            ({"schedule": ((0, 1.0), (0, 2.0))}, r"iterations ascending,.* got \(\(0, 1.0\), "),
            ({"schedule": (0, 1.0)}, r"must be pairs of an iteration and a factor.*got \(0, 1.0\)"),
            ({"schedule": ((0, -1.0),)}, r"got \(\(0, -1.0\),\)"),
            ({"schedule": ((5.5, 1.0),)}, r"got \(\(5.5, 1.0\),\)"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Weight(**arguments)
