"""Operators on inputs that hypothesis makes up, against brute force in float64: their twins.

``python -m tests.ops.fuzz --seconds 120`` (``make fuzz``) looks for a fault as long as that, and
prints the smallest input that shows it. Numbers are whole multiples of powers of two, so that what
lies on an edge does so in both. test_fuzz.py has the same for a few seconds.
"""

import argparse
import itertools
import time

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrdet.ops import elementwise_iou, pairwise_iou, reference, soft_rank
from corrdet.ops._boxes import IOU_KINDS
from tests.helpers.ops import DTYPES, assert_near
from tests.helpers.pairwise_errors import PAIRWISE_ERRORS, compare_pairwise_error

TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def fuzzed(*strategies):
    """Say what the arguments of a check are drawn from."""

    def decorate(check):
        check.strategies = strategies
        return check

    return decorate


def multiples(most: int, lowest_power: int, highest_power: int):
    """Lists of whole multiples of one power of two; small ones more often, so that many are equal.

    Returns:
        a strategy of functions from a length to a strategy of lists of floats.
    """

    def number_lists(length):
        numbers = st.one_of(st.integers(-4, 4), st.integers(-most, most))
        return st.builds(
            lambda values, power: [value * 2.0**power for value in values],
            st.lists(numbers, min_size=length, max_size=length),
            st.integers(lowest_power, highest_power),
        )

    return number_lists


def strided(values, is_strided: bool):
    """The same values, every other one in memory where `is_strided`."""
    return torch.stack([values, -values], -1)[..., 0] if is_strided else values


@st.composite
def batches(draw):
    """Logits, labels and IoUs; some logits may be far from the others."""
    count = draw(st.integers(0, 40))
    dtype = draw(st.sampled_from(DTYPES))
    logits = draw(multiples(2**9, -8, 4)(count))
    if count and draw(st.booleans()):
        for index in draw(st.lists(st.integers(0, count - 1), max_size=4)):
            logits[index] = draw(st.sampled_from((-1, 1))) * 2.0 ** draw(st.integers(10, 900))
    logits = torch.tensor(logits, dtype=torch.float64)
    logits = logits.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    labels = draw(st.lists(st.sampled_from((0, 0, 1, -1)), min_size=count, max_size=count))
    labels = torch.tensor(labels, dtype=torch.int64)
    positives = int((labels == 1).sum())
    ious = draw(st.lists(st.integers(1, 16), min_size=positives, max_size=positives))
    is_strided = draw(st.booleans())
    return strided(logits, is_strided), labels, torch.tensor(ious, dtype=torch.float64) / 16


deltas = st.builds(lambda m, power: m * 2.0**power, st.integers(1, 7), st.integers(-6, 6))


@fuzzed(batches(), st.sampled_from(PAIRWISE_ERRORS["step_error"].losses), deltas)
def fuzz_step_error(batch, loss, delta):
    compare_pairwise_error(PAIRWISE_ERRORS["step_error"], *batch, loss, delta)


@fuzzed(
    batches(), st.sampled_from(PAIRWISE_ERRORS["smooth_error"].losses), st.floats(0.05, 50), deltas,
    st.booleans(),
)  # fmt: skip
def fuzz_smooth_error(batch, loss, lam, delta, weight_by_iou):
    error = PAIRWISE_ERRORS["smooth_error"]
    compare_pairwise_error(error, *batch, loss, lam, delta, weight_by_iou)


@fuzzed(
    st.integers(0, 40).flatmap(multiples(2**9, -8, 12)), st.sampled_from(DTYPES),
    st.integers(1, 1000), st.booleans(),
)  # fmt: skip
def fuzz_soft_rank(values, dtype, strength, is_strided):
    # An irrational strength: no pool is on the point of joining another.
    strength = strength * 0.0314159265358979 * max([abs(v) for v in values] + [1]) / 64
    mine = torch.tensor(values, dtype=torch.float64)
    mine = mine.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    mine = strided(mine, is_strided).requires_grad_()
    theirs = mine.detach().double().requires_grad_()
    weights = torch.linspace(-1, 2, len(values), dtype=dtype).double()
    results = []
    for function, leaf in ((soft_rank, mine), (reference.soft_rank, theirs)):
        ranks = function(leaf, strength)
        (gradient,) = torch.autograd.grad(ranks, leaf, weights.to(leaf.dtype))
        # In units of 1 / strength, beside a 1: some gradients are 0 but for rounding.
        gradient = torch.cat([gradient.double() * strength, weights.new_ones(1)])
        # In halves gradients of 1 / strength are often below the smallest normal number.
        results.append((ranks.detach(), *([gradient] if dtype in DTYPES[:2] else [])))
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected, max(TOLERANCES[dtype], 1e-8))


@st.composite
def box_sets(draw):
    """Boxes of which some have no area, are inverted, identical, or touch."""
    count, dtype = draw(st.integers(1, 8)), draw(st.sampled_from(DTYPES[:2]))
    sets = [draw(multiples(2**6, -3, 20)(4 * count)) for _ in range(2)]
    boxes1, boxes2 = (torch.tensor(values, dtype=dtype).view(count, 4) for values in sets)
    if draw(st.booleans()):
        boxes2[::2] = boxes1[::2]
    # Of an inverted side the gradients of its ends are added, which in float32 leaves little.
    if dtype == torch.float32 or draw(st.booleans()):
        boxes1, boxes2 = (
            torch.cat([b[:, :2], b[:, :2] + b[:, 2:].abs()], 1) for b in (boxes1, boxes2)
        )
    return [strided(boxes, draw(st.booleans())) for boxes in (boxes1, boxes2)]


@fuzzed(box_sets(), st.sampled_from(IOU_KINDS), st.booleans())
def fuzz_ious(boxes, kind, is_pairwise):
    name, function = (
        ("pairwise_iou", pairwise_iou) if is_pairwise else ("elementwise_iou", elementwise_iou)
    )
    mine = [b.detach().requires_grad_() for b in boxes]
    theirs = [b.detach().double().requires_grad_() for b in boxes]
    actual, expected = function(*mine, kind), getattr(reference, name)(*theirs, kind)
    tolerance = 10 * TOLERANCES[boxes[0].dtype]
    assert_near(actual.detach(), expected.detach(), tolerance)
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
    results = (
        torch.autograd.grad(actual, mine, weights.to(actual.dtype)),
        torch.autograd.grad(expected, theirs, weights),
    )
    # In units of the boxes' extent, beside a 1: some gradients are 0 but for rounding.
    extent = max(float(b.detach().abs().max()) for b in theirs)
    for own, other in zip(*results, strict=True):
        assert_near(*(torch.cat([g.flatten() * extent, g.new_ones(1)]) for g in (own, other)),
                    tolerance)  # fmt: skip


PROPERTIES = [fuzz_step_error, fuzz_smooth_error, fuzz_soft_rank, fuzz_ious]


def run(check, examples: int, **options) -> None:
    """Check so many examples, and raise for the smallest that fails."""
    limits = settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip

    @limits
    @given(st.tuples(*check.strategies))
    def run_example(arguments):
        check(*arguments)

    run_example()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to look")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    end, examples, rounds = time.monotonic() + seconds, 200, itertools.count(1)
    for number in rounds:
        for check in PROPERTIES:
            run(check, examples)
            if time.monotonic() > end:
                print(f"nothing found in {number} rounds of {examples} examples of each operator")
                return


if __name__ == "__main__":
    main()
