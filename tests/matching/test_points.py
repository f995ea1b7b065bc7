"""FCOS and FoveaBox: matching of locations."""

import math

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances

from corrdet.matching import fcos_matching, foveabox_matching
from tests.helpers.matching import (
    NUM_CLASSES,
    RANGES,
    SCALES,
    assert_matches,
    classes_of,
    every_object,
    hostile_objects,
    plain_area,
    pyramid,
    random_objects,
)


def locations(priors, priors_per_level):
    """Index, centre, side and level of each prior."""
    level = [level for level, count in enumerate(priors_per_level) for _ in range(count)]
    for index, (x1, y1, x2, y2) in enumerate(priors.tolist()):
        yield index, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, level[index]


def plain_fcos(priors, gt_boxes, priors_per_level, ranges, radius=None):
    matched = []
    for _, x, y, stride, level in locations(priors, priors_per_level):
        choice, smallest = None, math.inf
        for index, gt in enumerate(gt_boxes.tolist()):
            sides = [x - gt[0], y - gt[1], gt[2] - x, gt[3] - y]
            if min(sides) <= 0 or not ranges[level][0] <= max(sides) <= ranges[level][1]:
                continue
            if radius is not None:
                if abs(x - (gt[0] + gt[2]) / 2) >= radius * stride:
                    continue
                if abs(y - (gt[1] + gt[3]) / 2) >= radius * stride:
                    continue
            if plain_area(gt) < smallest:
                choice, smallest = index, plain_area(gt)
        matched.append(choice)
    return matched


def plain_foveabox(priors, gt_boxes, priors_per_level, ranges, sigma):
    matched = []
    for _, x, y, _, level in locations(priors, priors_per_level):
        choice, smallest = None, math.inf
        for index, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
            area = plain_area((x1, y1, x2, y2))
            # The ends of the fovea: of the box, moved towards the centre.
            margin_x, margin_y = (1 - sigma) / 2 * (x2 - x1), (1 - sigma) / 2 * (y2 - y1)
            in_x = x1 + margin_x <= x <= x2 - margin_x
            in_y = y1 + margin_y <= y <= y2 - margin_y
            in_range = ranges[level][0] <= math.sqrt(area) <= ranges[level][1]
            if in_x and in_y and in_range and area < smallest:
                choice, smallest = index, area
        matched.append(choice)
    return matched


def check_fcos(gt_boxes, radius, device, dtype=torch.float32):
    priors, priors_per_level = pyramid(side=1, dtype=dtype)
    gt_boxes = gt_boxes.to(dtype)
    classes = classes_of(gt_boxes)
    expected = plain_fcos(priors, gt_boxes, priors_per_level, RANGES, radius)
    result = fcos_matching(
        priors.to(device),
        gt_boxes.to(device),
        classes.to(device),
        priors_per_level,
        RANGES,
        NUM_CLASSES,
        radius,
    )
    assert_matches(result, expected, gt_boxes, classes)
    return expected


def check_foveabox(gt_boxes, sigma, device, dtype=torch.float32):
    priors, priors_per_level = pyramid(side=1, dtype=dtype)
    gt_boxes = gt_boxes.to(dtype)
    classes = classes_of(gt_boxes)
    expected = plain_foveabox(priors, gt_boxes, priors_per_level, SCALES, sigma)
    result = foveabox_matching(
        priors.to(device),
        gt_boxes.to(device),
        classes.to(device),
        priors_per_level,
        SCALES,
        NUM_CLASSES,
        sigma,
    )
    assert_matches(result, expected, gt_boxes, classes)
    return expected


@every_object
@pytest.mark.parametrize("radius", [None, 1.5])
def test_fcos_hostile_objects(name, radius, device):
    check_fcos(hostile_objects()[name], radius, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("radius", [None, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_fcos_random_objects(seed, radius, dtype, device):
    expected = check_fcos(random_objects(12, seed=20 + seed), radius, device, dtype)
    assert any(match is not None for match in expected)


@every_object
def test_foveabox_hostile_objects(name, device):
    check_foveabox(hostile_objects()[name], 0.5, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])  # exact in binary, so that borders are
@pytest.mark.parametrize("seed", range(4))
def test_foveabox_random_objects(seed, sigma, dtype, device):
    expected = check_foveabox(random_objects(12, seed=20 + seed), sigma, device, dtype)
    assert any(match is not None for match in expected)


def test_the_default_fovea_is_two_fifths_of_the_box():
    x = torch.tensor([29.0, 31, 50, 69, 71])
    priors = torch.stack([x - 4, torch.full_like(x, 46), x + 4, torch.full_like(x, 54)], dim=1)
    gt_boxes, classes = torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([0])
    labels, _ = foveabox_matching(priors, gt_boxes, classes, [5], [(0, 1000)], NUM_CLASSES)
    assert (labels == 0).tolist() == [False, True, True, True, False]


def test_bounds_of_ranges_are_included():
    priors = torch.tensor([[60.0, 60, 68, 68]] * 2)  # the same location on two levels
    gt_boxes, classes = torch.tensor([[0.0, 32, 96, 96]]), torch.tensor([3])  # farthest: 64
    labels, _ = fcos_matching(priors, gt_boxes, classes, [1, 1], [(0, 64), (64, 128)], NUM_CLASSES)
    assert labels.tolist() == [3, 3]
    square = torch.tensor([[32.0, 32, 96, 96]])  # scale 64
    labels, _ = foveabox_matching(priors, square, classes, [1, 1], [(1, 64), (64, 99)], NUM_CLASSES)
    assert labels.tolist() == [3, 3]


@pytest.mark.parametrize("seed", range(3))
def test_fcos_agrees_with_detectron2_where_the_definitions_coincide(seed):
    """Its ranges do not include their bounds, and areas are compared in steps of 8 pixels."""
    priors, priors_per_level = pyramid(side=1)
    # Odd quarters of a pixel: no location is on a border, no distance at a bound.
    gt_boxes = random_objects(15, seed=40 + seed).floor() + torch.tensor([0.25, 0.25, 0.75, 0.75])
    classes = classes_of(gt_boxes)
    model = FCOS.__new__(FCOS)  # without backbone and head
    torch.nn.Module.__init__(model)
    model.center_sampling_radius, model.num_classes = 1.5, NUM_CLASSES
    instances = Instances((96, 96), gt_boxes=Boxes(gt_boxes))
    instances.gt_classes = classes
    anchors = [Boxes(level) for level in priors.split(priors_per_level)]
    labels, boxes = model.label_anchors(anchors, [instances])
    ranges = ((0, 64), (64, 128), (128, 256), (256, 512), (512, math.inf))
    ours = fcos_matching(priors, gt_boxes, classes, priors_per_level, ranges, NUM_CLASSES, 1.5)
    assert torch.equal(ours[0], labels[0])
    positive = ours[0] < NUM_CLASSES
    assert positive.any()
    theirs = getattr(boxes[0], "tensor", boxes[0])  # Boxes or a tensor, by version
    assert torch.equal(ours[1][positive], theirs[positive])


@pytest.mark.parametrize("matching", [fcos_matching, foveabox_matching])
def test_bad_input(matching):
    priors, priors_per_level = pyramid(side=1)
    gt_boxes = random_objects(5)
    arguments = priors, gt_boxes, classes_of(gt_boxes)
    with pytest.raises(ValueError, match="a range for each of the 5 levels, got 4"):
        matching(*arguments, priors_per_level, RANGES[:4], NUM_CLASSES)
    with pytest.raises(ValueError, match=r"low <= high, got \(2, 1\)"):
        matching(*arguments, priors_per_level, (*RANGES[:4], (2, 1)), NUM_CLASSES)
    with pytest.raises(ValueError, match="must sum to the 194 priors"):
        matching(*arguments, [194, 1, 0, 0, 0], RANGES, NUM_CLASSES)
    name = "center_sampling_radius" if matching is fcos_matching else "sigma"
    with pytest.raises(ValueError, match=f"{name} must be .* got 0"):
        matching(*arguments, priors_per_level, RANGES, NUM_CLASSES, **{name: 0})
