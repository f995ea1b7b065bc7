import itertools
import math

import pytest
import torch

from corrdet.matching import hungarian_matching
from tests.helpers.matching import NUM_CLASSES, random_objects


def plain_cost(logits, box, gt_box, gt_class, size):
    """Of one prediction and one ground truth, with the published weights."""
    score = 1 / (1 + math.exp(-logits[gt_class]))
    positive = -0.25 * (1 - score) ** 2 * math.log(score)
    negative = -0.75 * score**2 * math.log(1 - score)
    height, width = size
    distance = sum(
        abs(mine - other) / extent
        for mine, other, extent in zip(box, gt_box, (width, height, width, height), strict=True)
    )
    return 2 * (positive - negative) + 5 * distance - 2 * plain_giou(box, gt_box)


def plain_giou(box, gt_box):
    shared = max(min(box[2], gt_box[2]) - max(box[0], gt_box[0]), 0) * max(
        min(box[3], gt_box[3]) - max(box[1], gt_box[1]), 0
    )
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, gt_box)) - shared
    hull = (max(box[2], gt_box[2]) - min(box[0], gt_box[0])) * (
        max(box[3], gt_box[3]) - min(box[1], gt_box[1])
    )
    return shared / union - (hull - union) / hull


def plain_softmax_cost(logits, box, gt_box, gt_class, size):
    """As DETR's, from that of Sparse R-CNN without its class and distance."""
    total = sum(math.exp(logit) for logit in logits)
    boxes = []
    for x1, y1, x2, y2 in (box, gt_box):
        boxes.append(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
    height, width = size
    distance = sum(
        abs(mine - other) / extent
        for mine, other, extent in zip(*boxes, (width, height, width, height), strict=True)
    )
    return -math.exp(logits[gt_class]) / total + 5 * distance - 2 * plain_giou(box, gt_box)


def plain_hungarian(costs, num_predictions, num_gts):
    """The ground truth of each prediction, by trying everything."""
    few = min(num_predictions, num_gts)
    best, choice = math.inf, None
    for predictions in itertools.permutations(range(num_predictions), few):
        for gts in itertools.combinations(range(num_gts), few):
            total = sum(costs[p][g] for p, g in zip(predictions, gts, strict=True))
            if total < best:
                best, choice = total, dict(zip(predictions, gts, strict=True))
    return [choice.get(prediction) for prediction in range(num_predictions)]


def random_batch(num_gts, num_predictions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(num_gts)
    logits = torch.randn(count, num_predictions, NUM_CLASSES, generator=generator) * 2
    boxes = random_objects(count * num_predictions, seed=seed).view(count, num_predictions, 4)
    gt_boxes = [random_objects(many, seed=100 + seed + i) for i, many in enumerate(num_gts)]
    gt_classes = [torch.randint(0, NUM_CLASSES, (many,), generator=generator) for many in num_gts]
    sizes = [(96, 64 + 16 * image) for image in range(count)]
    return logits, boxes, gt_boxes, gt_classes, sizes


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("seed", range(6))
def test_against_all_permutations(seed, activation, device):
    logits, boxes, gt_boxes, gt_classes, sizes = random_batch((3, 0, 4, 1, 6, 2), seed=seed)
    cost_of = plain_cost
    if activation == "softmax":
        logits, cost_of = torch.cat([logits, logits[:, :, :1] + 1], dim=2), plain_softmax_cost
    labels, matched = hungarian_matching(
        logits.to(device),
        boxes.to(device),
        [values.to(device) for values in gt_boxes],
        [values.to(device) for values in gt_classes],
        sizes,
        classification_weight=2.0 if activation == "sigmoid" else 1.0,
        activation=activation,
    )
    assert labels.shape == (6, 4) and matched.shape == (6, 4, 4)
    for image in range(6):
        costs = [
            [
                cost_of(logits[image, p].tolist(), box, gt_box, gt_class, sizes[image])
                for gt_box, gt_class in zip(
                    gt_boxes[image].tolist(), gt_classes[image].tolist(), strict=True
                )
            ]
            for p, box in enumerate(boxes[image].tolist())
        ]
        expected = plain_hungarian(costs, 4, len(gt_boxes[image]))
        for prediction, gt in enumerate(expected):
            if gt is None:
                assert labels[image, prediction] == NUM_CLASSES
            else:
                assert labels[image, prediction] == gt_classes[image][gt]
                assert matched[image, prediction].tolist() == gt_boxes[image][gt].tolist()


def test_every_ground_truth_gets_one_prediction_also_equal_ones():
    logits, boxes, _, _, _ = random_batch((1,), num_predictions=50)
    gt_boxes = torch.tensor([[10.0, 10, 30, 30]]).repeat(20, 1)
    classes = torch.full((20,), 5)
    labels, _ = hungarian_matching(logits, boxes, [gt_boxes], [classes], [(96, 96)])
    assert (labels == 5).sum() == 20 and (labels == NUM_CLASSES).sum() == 30


@pytest.mark.parametrize("many", [0, 1000])
def test_no_object_and_more_objects_than_predictions(many):
    arguments = random_batch((many, 3), num_predictions=100)
    labels, _ = hungarian_matching(*arguments)
    assert (labels[0] < NUM_CLASSES).sum() == min(many, 100)
    assert (labels[1] < NUM_CLASSES).sum() == 3


def test_costs_that_are_not_finite_do_not_stop_it():
    logits, boxes, gt_boxes, gt_classes, sizes = random_batch((3,), num_predictions=5)
    expected, _ = hungarian_matching(logits, boxes, gt_boxes, gt_classes, sizes)
    unused = torch.nonzero(expected[0] == NUM_CLASSES)[0, 0]
    boxes[0, unused] = torch.nan
    labels, _ = hungarian_matching(logits, boxes, gt_boxes, gt_classes, sizes)
    assert torch.equal(labels, expected)
    logits[:] = torch.inf
    labels, _ = hungarian_matching(logits, boxes, gt_boxes, gt_classes, sizes)
    assert (labels[0] < NUM_CLASSES).sum() == 3
    extreme = torch.full_like(logits, -1e4)
    labels, _ = hungarian_matching(extreme, boxes, gt_boxes, gt_classes, sizes)
    assert (labels[0] < NUM_CLASSES).sum() == 3


def test_half_precision_and_nothing_at_all():
    logits, boxes, gt_boxes, gt_classes, sizes = random_batch((3, 2))
    labels, matched = hungarian_matching(logits.half(), boxes.half(), gt_boxes, gt_classes, sizes)
    assert (labels < NUM_CLASSES).sum() == 5 and matched.dtype == torch.float32
    labels, matched = hungarian_matching(logits[:0], boxes[:0], [], [], [])
    assert labels.shape == (0, 4) and matched.shape == (0, 4, 4)
    labels, matched = hungarian_matching(logits[:, :0], boxes[:, :0], gt_boxes, gt_classes, sizes)
    assert labels.shape == (2, 0) and matched.shape == (2, 0, 4)


def test_bad_input():
    logits, boxes, gt_boxes, gt_classes, sizes = random_batch((3, 2))
    with pytest.raises(ValueError, match="gt_boxes must be of 2 images, got 1"):
        hungarian_matching(logits, boxes, gt_boxes[:1], gt_classes, sizes)
    with pytest.raises(ValueError, match=r"boxes must have shape \(2, 4, 4\).*got \(2, 3, 4\)"):
        hungarian_matching(logits, boxes[:, 1:], gt_boxes, gt_classes, sizes)
    with pytest.raises(ValueError, match="logits must have 3 dimensions, got shape"):
        hungarian_matching(logits[0], boxes[0], gt_boxes, gt_classes, sizes)
    with pytest.raises(ValueError, match="gt_boxes, gt_classes must have the same length"):
        hungarian_matching(logits, boxes, gt_boxes, gt_classes[::-1], sizes)
