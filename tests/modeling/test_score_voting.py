import math

import pytest
import torch

from corrdet.modeling import score_voting
from corrdet.ops import pairwise_iou


def plain_voting(boxes, classes, candidates, scores, candidate_classes):
    voted = []
    ious = pairwise_iou(boxes, candidates).tolist()
    for index, box in enumerate(boxes.tolist()):
        total, sums = 0.0, [0.0] * 4
        for other, candidate in enumerate(candidates.tolist()):
            iou = ious[index][other]
            if classes[index] != candidate_classes[other] or iou == 0:
                continue
            weight = scores[other].item() * math.exp(-((1 - iou) ** 2) / 0.025)
            total += weight
            sums = [old + weight * value for old, value in zip(sums, candidate, strict=True)]
        voted.append([value / total for value in sums] if total else box)
    return torch.tensor(voted, dtype=boxes.dtype).view(-1, 4)


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(10, 2, generator=generator).double() * 30
    sides = torch.rand(10, 2, generator=generator).double() * 40 + 10
    candidates = torch.cat([corners, corners + sides], dim=1).repeat(8, 1)
    candidates += torch.randn(80, 4, generator=generator) * 2
    candidates[3, 2:] = candidates[3, :2]  # without area
    scores = torch.rand(80, generator=generator).double()
    classes = torch.randint(0, 3, (80,), generator=generator)
    voted = score_voting(candidates[:10], classes[:10], candidates, scores, classes)
    expected = plain_voting(candidates[:10], classes[:10], candidates, scores, classes)
    torch.testing.assert_close(voted, expected)
    assert torch.equal(voted[3], candidates[3])
    assert (voted - candidates[:10]).abs().amax(dim=1).gt(0.1).sum() >= 5


def test_only_its_own_class_and_neighbourhood_vote():
    boxes, classes = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1])
    candidates = torch.tensor([[0.0, 0, 10, 10], [2, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.9])
    alone = score_voting(boxes, classes, candidates, scores, torch.tensor([1, 2, 1]))
    assert torch.equal(alone, boxes)
    pair = score_voting(boxes, classes, candidates, scores, torch.tensor([1, 1, 1]))
    assert 0 < pair[0, 0] < 2 and pair[0, 1:].tolist() == pytest.approx([0, 10, 10])


def test_nothing_to_move_and_bad_input():
    none, scores, classes = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert score_voting(none, classes, none, scores, classes).shape == (0, 4)
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    assert torch.equal(score_voting(boxes, torch.tensor([1]), none, scores, classes), boxes)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        score_voting(boxes, torch.tensor([1]), none, scores, classes, sigma=0)
