import pytest
import torch

from corrdet.matching import hard_negative_mining, refinedet_matching, ssd_matching
from corrdet.matching.ssd import bipartite_matching
from corrdet.ops import pairwise_iou
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


def plain_ssd(priors, gt_boxes, threshold=0.5):
    ious = [
        [plain_iou(prior, gt, priors.dtype) for prior in priors.tolist()]
        for gt in gt_boxes.tolist()
    ]
    matched = []
    for column in zip(*ious, strict=True):
        best = max(column)
        matched.append(column.index(best) if best > threshold else None)
    if not ious:
        matched = [None] * len(priors)
    for prior, gt in plain_bipartite(ious).items():
        matched[prior] = gt
    return matched


def plain_bipartite(ious):
    """SSD's Caffe code: as long as any is left, the pair of the largest IoU; strictly larger, of
    priors and then ground truths in their order."""
    pool, matches = set(range(len(ious))), {}
    num_priors = len(ious[0]) if ious else 0
    while pool:
        largest, pair = 0.0, None
        for prior in range(num_priors):
            for gt in sorted(pool):
                if prior not in matches and ious[gt][prior] > largest:
                    largest, pair = ious[gt][prior], (prior, gt)
        if pair is None:
            break
        matches[pair[0]] = pair[1]
        pool.remove(pair[1])
    return matches


def check(gt_boxes, device, dtype=torch.float32):
    priors, _ = pyramid(side=4, dtype=dtype)
    gt_boxes = gt_boxes.to(dtype)
    classes = classes_of(gt_boxes)
    expected = plain_ssd(priors, gt_boxes)
    result = ssd_matching(priors.to(device), gt_boxes.to(device), classes.to(device), NUM_CLASSES)
    assert_matches(result, expected, gt_boxes, classes)
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_between_two_thresholds_priors_are_ignored(seed, device):
    priors, _ = pyramid(side=4)
    gt_boxes = random_objects(15, seed=seed, largest=60)
    classes = classes_of(gt_boxes)
    overlaps = [max(plain_iou(p, gt, priors.dtype) for gt in gt_boxes.tolist())
                for p in priors.tolist()]  # fmt: skip
    expected = [
        classes[match].item() if match is not None else (-1 if overlap >= 0.3 else NUM_CLASSES)
        for match, overlap in zip(plain_ssd(priors, gt_boxes), overlaps, strict=True)
    ]
    arguments = priors.to(device), gt_boxes.to(device), classes.to(device), NUM_CLASSES
    labels, _ = ssd_matching(*arguments, negative_threshold=0.3)
    assert labels.tolist() == expected and {-1, NUM_CLASSES} < set(expected)
    for threshold in (0.0, 0.6):
        with pytest.raises(ValueError, match=r"negative_threshold must be in \(0, 0.5\], got"):
            ssd_matching(*arguments, negative_threshold=threshold)


@every_object
def test_hostile_objects(name, device):
    gt_boxes = hostile_objects()[name]
    expected = check(gt_boxes[:40], device)  # the plain loops are slow
    if name in ("one", "one pixel", "smaller than any prior"):
        assert any(match is not None for match in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_objects(seed, dtype, device):
    check(random_objects(15, seed=30 + seed, largest=60), device, dtype)


def test_a_thousand_objects():
    """More than priors: each prior that any overlaps is of one of them."""
    priors, _ = pyramid(side=4)
    gt_boxes = hostile_objects()["many"]
    labels, boxes = ssd_matching(priors, gt_boxes, classes_of(gt_boxes), NUM_CLASSES)
    positive = labels < NUM_CLASSES
    overlapped = (pairwise_iou(priors, gt_boxes) > 0).any(dim=1)
    assert torch.equal(positive, overlapped) and positive.sum() > 100
    assert {tuple(box) for box in boxes[positive].tolist()} <= {tuple(b) for b in gt_boxes.tolist()}


@pytest.mark.parametrize("seed", range(4))
def test_no_object_is_left_without_a_prior_while_one_is_left(seed, device):
    """IoUs of few values, for ties and chains of conflicts, against the Caffe algorithm."""
    generator = torch.Generator().manual_seed(seed)
    ious = torch.randint(0, 5, (12, 14), generator=generator).double() / 4
    ious[3] = 0
    ious[5:8] = ious[4]  # duplicates
    matched = bipartite_matching(ious.to(device))
    expected = plain_bipartite(ious.tolist())
    assert matched.tolist() == [expected.get(prior, -1) for prior in range(14)]
    assert sorted(expected.values()) == [gt for gt in range(12) if gt != 3]


def test_crowded_objects_get_the_next_best():
    # Twenty copies of one object: one prior each, the best of those that are left.
    priors = torch.tensor([[0.0, 0, 10, 10 + k] for k in range(30)])
    gt_boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(20, 1)
    labels, _ = ssd_matching(priors, gt_boxes, torch.arange(20), 20, iou_threshold=0.99)
    assert labels.tolist() == [*range(20), *[20] * 10]


def test_a_claim_beats_a_larger_iou_of_another():
    priors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    # The first overlaps prior 0 by 1; the second has no other prior than 0.
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 20, 20]])
    labels, _ = ssd_matching(priors, gt_boxes, torch.tensor([0, 1]), NUM_CLASSES)
    assert labels.tolist() == [0, NUM_CLASSES]  # the largest IoU first; none is left
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 20, 20], [0, 0, 10, 10.5]])
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.25]])
    # Prior 1 overlaps the first most, by more than 1/2, but is the best one of the third.
    labels, _ = ssd_matching(priors, gt_boxes[[0, 2]], torch.tensor([0, 2]), NUM_CLASSES)
    assert labels.tolist() == [0, 2]


def test_the_threshold_is_not_included():
    priors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 5]])
    gt_boxes = torch.tensor([[0.0, 0, 8, 8]])
    labels, _ = ssd_matching(priors, gt_boxes, torch.tensor([0]), NUM_CLASSES)
    assert labels.tolist() == [0, NUM_CLASSES, 0]


def plain_mining(losses, labels, ratio):
    chosen = []
    for row_losses, row_labels in zip(losses.tolist(), labels.tolist(), strict=True):
        positives = [i for i, label in enumerate(row_labels) if 0 <= label < NUM_CLASSES]
        negatives = [i for i, label in enumerate(row_labels) if label == NUM_CLASSES]
        negatives.sort(key=lambda i: -row_losses[i])
        kept = positives + negatives[: int(ratio * len(positives))]
        chosen.append([i in kept for i in range(len(row_labels))])
    return chosen


@pytest.mark.parametrize("ratio", [0, 1.5, 3.0, 1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_mining_against_plain_loops(seed, ratio, device):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randint(0, 30, (6, 80), generator=generator) / 4  # with ties
    labels = torch.randint(-1, NUM_CLASSES + 1, (6, 80), generator=generator)
    labels[torch.rand(6, 80, generator=generator) < 0.8] = NUM_CLASSES
    labels[1] = NUM_CLASSES  # no positives
    labels[2] = 3  # no negatives
    labels[3] = -1
    result = hard_negative_mining(losses.to(device), labels.to(device), NUM_CLASSES, ratio)
    assert result.tolist() == plain_mining(losses, labels, ratio)


def test_mining_takes_three_negatives_for_a_positive_and_never_hides_nan():
    labels = torch.tensor([[0, 7, 7, 7, 7, 7], [7, 7, 7, 7, 7, 7]])
    losses = torch.tensor([[9.0, 1, 2, 5, 4, 3], [1, 1, 1, 1, 1, 1]])
    chosen = hard_negative_mining(losses, labels, NUM_CLASSES)
    assert chosen.tolist() == [[True, False, False, True, True, True], [False] * 6]
    losses[0, 1] = torch.nan
    assert hard_negative_mining(losses, labels, NUM_CLASSES)[0, 1]
    nothing = hard_negative_mining(losses[:, :0], labels[:, :0], NUM_CLASSES)
    assert nothing.shape == (2, 0)


@every_object
def test_refinedet_ignores_only_easy_negatives(name, device):
    gt_boxes = hostile_objects()[name][:100]
    classes = classes_of(gt_boxes)
    priors, _ = pyramid(side=4)
    generator = torch.Generator().manual_seed(0)
    # Anchors as a first step would have refined them, to multiples of 1/2.
    refined = priors + torch.randint(-4, 5, priors.shape, generator=generator) / 2
    objectness = torch.rand(len(priors), generator=generator) * 0.02
    objectness[0], objectness[1] = 0.01, 0.0
    expected = plain_ssd(refined, gt_boxes)
    labels, boxes = refinedet_matching(
        refined.to(device), objectness.to(device), gt_boxes.to(device), classes.to(device),
        NUM_CLASSES,
    )  # fmt: skip
    easy = [
        match is None and value < torch.tensor(0.01).item()
        for match, value in zip(expected, objectness.tolist(), strict=True)
    ]
    assert (labels == -1).tolist() == easy and any(easy)
    labels[labels == -1] = NUM_CLASSES
    assert_matches((labels, boxes), expected, gt_boxes, classes)


def test_bad_input():
    priors, _ = pyramid()
    gt_boxes = random_objects(5)
    classes = classes_of(gt_boxes)
    with pytest.raises(ValueError, match="refined_anchors, objectness must have the same length"):
        refinedet_matching(priors, torch.zeros(3), gt_boxes, classes, NUM_CLASSES)
    with pytest.raises(
        TypeError, match="objectness must be a float32 or float64 tensor, got int64"
    ):
        refinedet_matching(priors, torch.zeros(3).long(), gt_boxes, classes, NUM_CLASSES)
    with pytest.raises(TypeError, match="gt_classes must be a int64 tensor, got NoneType"):
        ssd_matching(priors, gt_boxes, None, NUM_CLASSES)
    losses, labels = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 4\) and \(2, 5\)"):
        hard_negative_mining(losses[:, 1:], labels, NUM_CLASSES)
    with pytest.raises(ValueError, match="ratio must not be negative, got -1"):
        hard_negative_mining(losses, labels, NUM_CLASSES, ratio=-1)
    with pytest.raises(ValueError, match="losses must have 2 dimensions, got shape"):
        hard_negative_mining(losses[0], labels[0], NUM_CLASSES)
