import math
import random

import pytest
import torch

from corrdet.matching import paa_candidates, paa_matching, paa_star_costs
from tests.helpers.matching import (
    every_object,
    hostile_objects,
    plain_iou,
    pyramid,
    random_objects,
    scikit_learn,
)


def plain_candidates(priors, gt_boxes, threshold):
    ious = [
        [plain_iou(prior, gt, priors.dtype) for prior in priors.tolist()]
        for gt in gt_boxes.tolist()
    ]
    matched = []
    for index in range(len(priors)):
        column = [row[index] for row in ious]
        best = max(column, default=0.0)
        is_best = any(row[index] == max(row) > 0 for row in ious)
        wanted = column and (best >= torch.tensor(threshold).to(priors.dtype) or is_best)
        matched.append(column.index(best) if wanted else -1)
    return matched


@every_object
def test_candidates(name, device):
    gt_boxes = hostile_objects()[name]
    if name == "many":
        gt_boxes = gt_boxes[:300]  # the plain loops are slow
    priors, _ = pyramid()
    result = paa_candidates(priors.to(device), gt_boxes.to(device))
    assert result.tolist() == plain_candidates(priors, gt_boxes, 0.1)


def test_the_threshold_of_candidates_is_included():
    priors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 3]])
    gt_boxes = torch.tensor([[0.0, 0, 8, 8]])
    assert paa_candidates(priors, gt_boxes, iou_threshold=0.5).tolist() == [0, 0, -1]
    assert paa_candidates(priors[1:], gt_boxes, iou_threshold=0.6).tolist() == [0, -1]


def plain_paa(costs, matched, levels, topk):
    """Procedure 1 with scikit-learn's mixture, one ground truth after the other."""
    positive = [False] * len(costs)
    for gt in sorted(set(matched) - {-1}):
        candidates = []
        for level in sorted(set(levels)):
            own = [i for i in range(len(costs)) if matched[i] == gt and levels[i] == level]
            candidates += sorted(own, key=lambda i: costs[i])[:topk]
        candidates.sort(key=lambda i: costs[i])
        keep = len(candidates)
        if len(candidates) > 1:
            samples = torch.tensor([[costs[i]] for i in candidates], dtype=torch.float64).numpy()
            mixture = scikit_learn(samples)
            components, scores = mixture.predict(samples), mixture.score_samples(samples)
            foreground = [i for i, component in enumerate(components) if component == 0]
            if foreground:
                keep = max(foreground, key=lambda i: scores[i]) + 1
        for i in candidates[:keep]:
            positive[i] = True
    return positive


def random_problem(seed, num_gts=20, num_levels=3, count=600):
    """Costs, ground truths (some with no prior, one or two) and levels of priors, as lists."""
    numbers = random.Random(seed)
    matched = [numbers.choice([-1, *range(4, num_gts)]) for _ in range(count)]
    matched += [0, 1, 1, 2, 2, 2]  # nothing is matched with 3
    levels = [numbers.randrange(num_levels) for _ in matched]
    costs = [
        numbers.gauss(0.5, 0.2) if numbers.random() < 0.3 else numbers.gauss(3, 0.5)
        for _ in matched
    ]
    together = list(zip(costs, matched, levels, strict=True))
    numbers.shuffle(together)
    return tuple(map(list, zip(*together, strict=True)))


@pytest.mark.parametrize("topk", [1, 2, 9])
@pytest.mark.parametrize("seed", range(4))
def test_against_plain_procedure(seed, topk, device):
    costs, matched, levels = random_problem(seed)
    expected = plain_paa(costs, matched, levels, topk)
    result = paa_matching(
        torch.tensor(costs, dtype=torch.float64, device=device),
        torch.tensor(matched, device=device),
        torch.tensor(levels, device=device),
        num_gts=20,
        num_levels=3,
        topk=topk,
    )
    assert result.tolist() == expected
    assert 0 < sum(expected) < len([gt for gt in matched if gt >= 0])


def match_one_object(costs, levels=None, **options):
    costs = torch.tensor(costs, dtype=torch.float64)
    levels = torch.zeros(len(costs)) if levels is None else torch.tensor(levels)
    matched = torch.zeros_like(costs, dtype=torch.int64)
    return paa_matching(costs, matched, levels.long(), 1, 5, **options).tolist()


def test_few_and_equal_costs():
    assert match_one_object([]) == []
    assert match_one_object([3.0]) == [True]
    assert match_one_object([3.0, 3.0]) == [True, True]
    assert match_one_object([1.0] * 12) == [True] * 9 + [False] * 3  # topk of one level
    assert match_one_object([1.0] * 12, topk=20) == [True] * 12
    assert match_one_object([1.0] * 12, levels=[0] * 6 + [4] * 6) == [True] * 12
    assert match_one_object([5.0, 0.1, 5.1, 0.1]) == [False, True, False, True]


def test_a_cost_that_is_not_finite_is_not_hidden():
    assert match_one_object([1.0, math.nan, 5.0])[1]
    assert match_one_object([1.0, math.inf, 5.0]) == [True] * 3
    costs = torch.tensor([0.1, 0.2, 4.0, math.nan, 1.0])
    matched, levels = torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, dtype=torch.int64)
    # The other ground truth is matched as if it were alone.
    positives = paa_matching(costs, matched, levels, 2, 1).tolist()
    assert positives[:3] == match_one_object([0.1, 0.2, 4.0])


def test_where_no_candidate_belongs_to_the_first_component_all_are_positive(monkeypatch):
    from corrdet.matching import TwoGaussians, paa

    def lost(values, valid):
        weights = torch.tensor([[1e-12, 1.0]], dtype=torch.float64)
        ones = torch.ones_like(weights)
        return TwoGaussians(weights, ones, ones, torch.tensor([1]))

    monkeypatch.setattr(paa, "fit_two_gaussians", lost)
    assert match_one_object([1.0, 2.0, 3.0]) == [True] * 3


def test_priors_without_ground_truth_change_nothing():
    costs, matched, levels = (torch.tensor(values) for values in random_problem(7))
    expected = paa_matching(costs, matched, levels, 20, 3)
    costs[matched < 0] = torch.nan
    assert torch.equal(paa_matching(costs, matched, levels, 20, 3), expected)
    with_gt = matched >= 0
    short = paa_matching(costs[with_gt], matched[with_gt], levels[with_gt], 20, 3)
    assert torch.equal(short, expected[with_gt])
    assert not expected[~with_gt].any()


def test_a_thousand_objects_and_none():
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(50_000, generator=generator) * 4
    matched = torch.randint(-1, 1000, (50_000,), generator=generator)
    levels = torch.randint(0, 5, (50_000,), generator=generator)
    positive = paa_matching(costs, matched, levels, 1000, 5)
    per_object = torch.bincount(matched[positive], minlength=1000)
    assert per_object.min() >= 1 and per_object.max() <= 45
    assert not paa_matching(costs, torch.full_like(matched, -1), levels, 0, 5).any()


def test_paa_star_costs(device):
    scores = [0.1, 0.5, 0.3, 0.2, 0.7, 0.7, 0.9]
    ious = [0.2, 0.8, 0.8, 0.9, 0.5, 0.25, 0.1]
    matched = [0, 0, 0, 2, 1, 1, -1]
    expected = [2.0, 0.0, 0.5, 2.0, 1.0, 2.0]  # of priors that are all the same: norm 0
    result = paa_star_costs(
        *(torch.tensor(values, device=device) for values in (scores, ious, matched)), num_gts=4
    )
    torch.testing.assert_close(result[:6].cpu(), torch.tensor(expected))
    shifted = torch.tensor(scores, device=device) - 5
    same = paa_star_costs(shifted, *(torch.tensor(v, device=device) for v in (ious, matched)), 4)
    torch.testing.assert_close(same, result, rtol=1e-4, atol=1e-5)
    nothing = torch.zeros(0, device=device)
    assert paa_star_costs(nothing, nothing, nothing.long(), num_gts=0).shape == (0,)


def test_paa_star_costs_without_normalization(device):
    """APE paper, Table 6, row 2: (1 - p) + (1 - I)."""
    scores, ious = torch.tensor([0.25, 0.5, 0.0]), torch.tensor([0.5, 0.75, 1.0])
    matched = torch.tensor([0, 0, 1])
    arguments = (value.to(device) for value in (scores, ious, matched))
    costs = paa_star_costs(*arguments, 2, normalize=False)
    assert costs.tolist() == [1.25, 0.75, 1.0]


def test_paa_star_prefers_what_is_good_at_both():
    generator = torch.Generator().manual_seed(0)
    good = torch.rand(30, generator=generator) < 0.3
    scores = torch.where(good, 0.12, 0.02) + torch.rand(30, generator=generator) * 0.02
    ious = torch.where(good, 0.9, 0.5) + torch.rand(30, generator=generator) * 0.05
    matched, levels = torch.zeros(30, dtype=torch.int64), torch.arange(30) % 5
    costs = paa_star_costs(scores, ious, matched, 1)
    positive = paa_matching(costs, matched, levels, 1, 5)
    assert positive.any() and not (positive & ~good).any()


def test_bad_input():
    costs, matched, levels = (torch.tensor(values) for values in random_problem(0))
    with pytest.raises(ValueError, match="costs, matched, levels must have the same length"):
        paa_matching(costs[1:], matched, levels, 20, 3)
    with pytest.raises(TypeError, match="matched must be a int64 tensor, got float32"):
        paa_matching(costs, matched.float(), levels, 20, 3)
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        paa_matching(costs, matched, levels, 20, 3, topk=0)
    with pytest.raises(ValueError, match="scores, ious, matched must have the same length"):
        paa_star_costs(costs, costs[1:], matched, 20)
    with pytest.raises(ValueError, match=r"priors must have shape \(N, 4\), got \(3, 3\)"):
        paa_candidates(torch.zeros(3, 3), random_objects(2))
