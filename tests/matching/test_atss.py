import statistics

import pytest
import torch

from corrdet.matching import atss_matching
from tests.helpers.matching import (
    NUM_CLASSES,
    assert_matches,
    classes_of,
    every_object,
    hostile_objects,
    plain_iou,
    pyramid,
    random_objects,
)


def plain_atss(priors, gt_boxes, priors_per_level, topk):
    """For each prior the index of its ground truth, or None."""
    dtype = priors.dtype
    priors, gt_boxes = priors.tolist(), gt_boxes.tolist()
    middles = [((a + c) / 2, (b + d) / 2) for a, b, c, d in priors]
    matched, best = [None] * len(priors), [None] * len(priors)
    for index, gt in enumerate(gt_boxes):
        x, y = (gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2
        candidates, start = [], 0
        for count in priors_per_level:
            level = list(range(start, start + count))
            level.sort(key=lambda i: (middles[i][0] - x) ** 2 + (middles[i][1] - y) ** 2)
            candidates += level[:topk]
            start += count
        ious = [plain_iou(priors[i], gt, dtype) for i in candidates]
        spread = statistics.stdev(ious) if len(ious) > 1 else 0.0
        threshold = statistics.mean(ious) + spread
        for i, iou in zip(candidates, ious, strict=True):
            inside = gt[0] < middles[i][0] < gt[2] and gt[1] < middles[i][1] < gt[3]
            if inside and iou >= threshold and (best[i] is None or iou > best[i]):
                matched[i], best[i] = index, iou
    return matched


def check(gt_boxes, device, topk=9, dtype=torch.float32, side=8):
    priors, priors_per_level = pyramid(side, dtype)
    gt_boxes = gt_boxes.to(dtype)
    classes = classes_of(gt_boxes)
    expected = plain_atss(priors, gt_boxes, priors_per_level, topk)
    result = atss_matching(
        priors.to(device),
        gt_boxes.to(device),
        classes.to(device),
        priors_per_level,
        NUM_CLASSES,
        topk,
    )
    assert_matches(result, expected, gt_boxes, classes)
    return expected


@every_object
def test_hostile_objects(name, device):
    check(hostile_objects()[name], device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("topk", [1, 3, 9])
@pytest.mark.parametrize("seed", range(3))
def test_random_objects(seed, topk, dtype, device):
    expected = check(random_objects(9, seed=10 + seed), device, topk, dtype, side=4)
    assert any(match is not None for match in expected)


def test_constant_ious_make_all_candidates_positive(device):
    # Rounding must not put the mean of nine equal values above them.
    priors = torch.tensor([[x, y, x + 1.0, y + 1] for x in (1, 5, 8) for y in (1, 5, 8)])
    gt_boxes = torch.tensor([[0.0, 0, 9, 12]])
    labels, _ = atss_matching(
        priors.to(device), gt_boxes.to(device), torch.tensor([2], device=device), [9], NUM_CLASSES
    )
    assert labels.tolist() == [2] * 9


def test_the_largest_iou_wins_whatever_the_order():
    priors = torch.tensor([[0.0, 0, 10, 10]])
    gt_boxes = torch.tensor([[0.0, 0, 12, 10], [0, 0, 10, 11], [0, 0, 13, 10]])
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        _, boxes = atss_matching(priors, gt_boxes[order], torch.tensor([0, 1, 2]), [1], NUM_CLASSES)
        assert boxes[0].tolist() == gt_boxes[1].tolist()


def test_levels_without_priors_and_no_priors_at_all():
    priors, priors_per_level = pyramid()
    gt_boxes = random_objects(5)
    arguments = gt_boxes, classes_of(gt_boxes)
    expected = atss_matching(priors, *arguments, priors_per_level, NUM_CLASSES)
    with_empty = atss_matching(priors, *arguments, [0, *priors_per_level, 0], NUM_CLASSES)
    assert torch.equal(with_empty[0], expected[0])
    labels, boxes = atss_matching(priors[:0], *arguments, [0, 0], NUM_CLASSES)
    assert labels.shape == (0,) and boxes.shape == (0, 4)


def test_bad_input():
    priors, priors_per_level = pyramid()
    gt_boxes = random_objects(5)
    classes = classes_of(gt_boxes)
    with pytest.raises(ValueError, match="must sum to the 194 priors, got \\(144, 36\\)"):
        atss_matching(priors, gt_boxes, classes, priors_per_level[:2], NUM_CLASSES)
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        atss_matching(priors, gt_boxes, classes, priors_per_level, NUM_CLASSES, topk=0)
    with pytest.raises(
        ValueError, match="gt_boxes, gt_classes must have the same length, got 5, 4"
    ):
        atss_matching(priors, gt_boxes, classes[1:], priors_per_level, NUM_CLASSES)
    with pytest.raises(TypeError, match="gt_classes must be a int64 tensor, got float32"):
        atss_matching(priors, gt_boxes, classes.float(), priors_per_level, NUM_CLASSES)
    with pytest.raises(TypeError, match="priors must be a float32 or float64 tensor, got list"):
        atss_matching(priors.tolist(), gt_boxes, classes, priors_per_level, NUM_CLASSES)
    with pytest.raises(TypeError, match="same dtype, got torch.float64 and torch.float32"):
        atss_matching(priors.double(), gt_boxes, classes, priors_per_level, NUM_CLASSES)
    with pytest.raises(ValueError, match=r"gt_boxes must have shape \(N, 4\), got \(5, 3\)"):
        atss_matching(priors, gt_boxes[:, :3], classes, priors_per_level, NUM_CLASSES)
    with pytest.raises(ValueError, match="priors, gt_boxes must be on the same device"):
        atss_matching(priors.to("meta"), gt_boxes, classes, priors_per_level, NUM_CLASSES)
