"""What the papers give in numbers and needs no training.

Table 4 of "IoU-balanced Loss Functions for Single-stage Object Detection", and the monotonicity of
Harmonic IoU in "Reconcile Prediction Consistency for Balanced Object Detection".
"""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

from corrdet.analysis.figures import IOU_BALANCED_PAIRS
from corrdet.losses import harmonic_iou_loss, iou_balanced_smooth_l1_loss
from corrdet.matching.max_iou import max_iou_matching
from corrdet.ops import elementwise_iou

STRIDES = (8, 16, 32, 64, 128)


def retinanet_anchors(height: int, width: int, smallest: float = 32.0) -> torch.Tensor:
    """(R, 4) RetinaNet's nine anchors at every place of its five levels."""
    generator = DefaultAnchorGenerator(
        sizes=[[smallest / 8 * stride * 2 ** (i / 3) for i in range(3)] for stride in STRIDES],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=list(STRIDES),
    )
    levels = [torch.zeros(1, 1, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    return torch.cat([boxes.tensor for boxes in generator(levels)])


def boxes_like_cocos(rng: np.random.Generator, height: int, width: int, scale: float):
    """(n, 4) boxes of an image, with the sizes that COCO's have.

    Of COCO's objects 41 % have fewer than 32 x 32 pixels and 24 % more than 96 x 96. Objects fill
    about 0.6 of their boxes, so these are boxes of 41 and 124 pixels, and the square root of a
    box's area is about log-normal, with 54 pixels in the middle. COCO has 7.3 objects an image.
    """
    n = max(1, rng.poisson(7.3))
    size, root_of_aspect = rng.lognormal(math.log(54), 1.2, n), rng.lognormal(0, 0.3, n)
    widths = np.clip(size * root_of_aspect * scale, 2, width)
    heights = np.clip(size / root_of_aspect * scale, 2, height)
    left, top = rng.uniform(0, 1, n) * (width - widths), rng.uniform(0, 1, n) * (height - heights)
    boxes = np.stack([left, top, left + widths, top + heights], axis=1)
    return torch.tensor(boxes, dtype=torch.float32)


def first_step(images: list[torch.Tensor], anchors: torch.Tensor, low_quality: bool):
    """Target deltas and IoUs of the positives while all predicted deltas are 0.

    Args:
        images: the ground-truth boxes of each.
        anchors: (R, 4).
        low_quality: whether each ground truth also gets the anchor that it overlaps most, however
            little that is.
    """
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=low_quality)
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    deltas, ious = [], []
    for gt_boxes in images:
        classes = torch.zeros(len(gt_boxes), dtype=torch.int64)
        labels, matched = max_iou_matching(anchors, gt_boxes, classes, matcher, num_classes=1)
        positive = labels == 0
        deltas.append(transform.get_deltas(anchors[positive], matched[positive]))
        ious.append(elementwise_iou(anchors[positive], matched[positive]))
    return torch.cat(deltas), torch.cat(ious)


def ratios(deltas: torch.Tensor, ious: torch.Tensor) -> list[float]:
    """Sum of the loss with each of the table's pairs, over the sum of smooth L1."""
    zeros = torch.zeros_like(deltas)
    sums = [
        iou_balanced_smooth_l1_loss(zeros, deltas, ious, lam, weight).sum().item()
        for lam, weight in IOU_BALANCED_PAIRS
    ]
    return [value / sums[0] for value in sums]


@pytest.fixture(scope="module")
def like_coco():
    """100 images of 800 x 600 pixels: what the paper's scale makes of COCO's 640 x 480."""
    rng = np.random.default_rng(0)
    return [boxes_like_cocos(rng, 600, 800, scale=1.25) for _ in range(100)]


def test_table_4_keeps_the_sum_of_the_first_step(like_coco):
    deltas, ious = first_step(like_coco, retinanet_anchors(600, 800), low_quality=True)
    # Few positives lie below the threshold, but their targets are large.
    assert 0.02 < (ious < 0.5).float().mean() < 0.1
    assert ratios(deltas, ious) == pytest.approx([1.0] * 5, abs=0.08)
    # And they do so alike: what is off is how many small boxes there are, not the exponents.
    assert np.ptp(ratios(deltas, ious)[1:]) < 0.05


def test_table_4_needs_positives_below_an_iou_of_one_half(like_coco):
    deltas, ious = first_step(like_coco, retinanet_anchors(600, 800), low_quality=False)
    assert ious.min() >= 0.5
    measured = ratios(deltas, ious)
    for (lam, weight), ratio in zip(IOU_BALANCED_PAIRS[1:], measured[1:], strict=True):
        # With I >= 1/2 everywhere, whatever the boxes, no weight above 2^lam keeps the sum.
        assert weight > 2**lam
        assert ratio > 1.1
    assert measured == pytest.approx([1.0, 1.18, 1.24, 1.28, 1.29], abs=0.03)


def test_on_digits_the_weights_of_table_4_are_too_large(tiny_digits):
    images = [
        torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        for record in DatasetCatalog.get("tiny_train")
    ]
    images = [torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1) for boxes in images]
    images = [boxes for boxes in images if len(boxes)]
    # The quick configs' anchors: no object is small for them.
    anchors = retinanet_anchors(160, 160, smallest=16.0)
    measured = ratios(*first_step(images, anchors, low_quality=True))
    assert measured == pytest.approx([1.0, 1.18, 1.25, 1.29, 1.31], abs=0.03)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.8, 1.0])
def test_harmonic_iou_falls_with_the_iou(gamma):
    ious = torch.linspace(0, 1, 10001, dtype=torch.float64)
    assert (harmonic_iou_loss(ious, gamma).diff() < 0).all()


def test_harmonic_iou_would_not_above_a_gamma_of_1():
    ious = torch.linspace(0, 1, 10001, dtype=torch.float64)
    loss = (1 + ious) ** 1.5 * (1 - ious)
    # It rises up to I = (gamma - 1) / (gamma + 1).
    assert (loss.diff()[ious[1:] <= 0.2] > 0).all()
    assert (loss.diff()[ious[1:] > 0.2] < 0).all()
    for gamma in (1.5, 1.001, math.nan):
        with pytest.raises(ValueError, match="gamma must be .*<= 1, got"):
            harmonic_iou_loss(ious, gamma)
