"""Losses whose targets of positives are made of score and IoU, against plain loops.

The formulas are those of the authors' programs: Align-DETR's IA-BCE, DEIM's MAL, Stable-DINO's
position-supervised loss, TOOD's task-aligned focal loss, with their constants.
"""

import math

import pytest
import torch

from corrdet.losses import (
    CLASSIFICATION_LOSSES,
    Criterion,
    giou_loss,
    ia_bce_loss,
    mal_loss,
    position_supervised_loss,
    position_targets,
    task_aligned_loss,
    task_alignment,
    varifocal_loss,
)
from tests.helpers.losses import NORMALIZER, matched_predictions

HOSTILE = [0.0, 1e4, -1e4, 50.0, -50.0, 1e-20]
NAMES = ("ia_bce", "mal", "position_supervised", "task_aligned")


def samples(count=60):
    """(count,) logits, labels and IoUs, of every third sample; two of them 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, generator=generator, dtype=torch.float64) * 2
    labels = (torch.arange(count) % 3 == 0).double()
    ious = torch.rand(count, generator=generator, dtype=torch.float64) * labels
    ious[0], ious[3] = 0.0, 1.0
    return logits, labels, ious


def sigmoid(s):
    return 1 / (1 + math.exp(-s))


def cross_entropy(p, target):
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def by_loop(logits, labels, values, of_positive, of_negative):
    scores = [sigmoid(s) for s in logits.tolist()]
    return torch.tensor(
        [
            of_positive(p, value) if label else of_negative(p)
            for p, label, value in zip(scores, labels.tolist(), values.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.0, 1.0), (1.0, 0.5), (0.5, 0.0)])
def test_ia_bce(alpha, gamma):
    logits, labels, ious = samples()

    def of_positive(p, iou):
        target = max(p**alpha * iou ** (1 - alpha), 0.01)
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    expected = by_loop(
        logits, labels, ious, of_positive, lambda p: -(p**gamma) * math.log(1 - p)
    )  # fmt: skip
    losses = ia_bce_loss(logits, labels, ious, alpha, gamma)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma, alpha", [(1.5, None), (2.0, 0.75), (0.5, 0.0), (0.0, None)])
def test_mal(gamma, alpha):
    logits, labels, ious = samples()
    weight = 1 if alpha is None else alpha
    expected = by_loop(
        logits,
        labels,
        ious,
        lambda p, iou: cross_entropy(p, iou**gamma),
        lambda p: -weight * p**gamma * math.log(1 - p),
    )
    losses = mal_loss(logits, labels, ious, gamma, alpha)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


def plain_position_targets(ious, images, exponent):
    powers = [iou**exponent for iou in ious]
    best = {i: max(t for t, j in zip(powers, images, strict=True) if j == i) for i in images}
    pairs = zip(powers, images, strict=True)
    return [t / (best[image] + 1e-8) for t, image in pairs]


IMAGES = [0, 0, 2, 2, 2, 4, 5, 5]
POSITIVE_IOUS = [0.9, 0.3, 0.05, 0.2, 0.1, 0.0, 1.0, 0.5]
POSITIVE_SCORES = [0.2, 0.9, 0.5, 0.01, 0.6, 0.4, 0.7, 0.99]


@pytest.mark.parametrize("exponent", [2.0, 1.0, 0.5])
def test_position_targets(exponent):
    ious = torch.tensor(POSITIVE_IOUS, dtype=torch.float64, requires_grad=True)
    targets = position_targets(ious, torch.tensor(IMAGES), 6, exponent)
    expected = plain_position_targets(POSITIVE_IOUS, IMAGES, exponent)
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))
    assert not targets.requires_grad
    assert targets[5] == 0 or exponent == 0.5  # the smallest positive number is taken for 0
    assert len(position_targets(ious[:0], torch.tensor([], dtype=torch.int64), 0)) == 0


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.0, 1.0), (1.0, 0.5)])
def test_position_supervised(alpha, gamma):
    logits, labels, targets = samples()
    expected = by_loop(
        logits,
        labels,
        targets,
        lambda p, t: alpha * abs(t - p) ** gamma * cross_entropy(p, t),
        lambda p: -(1 - alpha) * p**gamma * math.log(1 - p),
    )
    losses = position_supervised_loss(logits, labels, targets, alpha, gamma)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


def plain_alignment(scores, ious, objects, alpha, beta):
    t = [s**alpha * u**beta for s, u in zip(scores, ious, strict=True)]
    targets = []
    for value, own in zip(t, objects, strict=True):
        same = [i for i, other in enumerate(objects) if other == own]
        targets.append(value / (max(t[i] for i in same) + 1e-7) * max(ious[i] for i in same))
    return targets


@pytest.mark.parametrize("alpha, beta", [(1.0, 6.0), (0.5, 2.0), (0.0, 1.0)])
def test_task_alignment(alpha, beta):
    scores = torch.tensor(POSITIVE_SCORES, dtype=torch.float64, requires_grad=True)
    ious = torch.tensor(POSITIVE_IOUS, dtype=torch.float64, requires_grad=True)
    targets = task_alignment(scores, ious, torch.tensor(IMAGES), 6, alpha, beta)
    expected = plain_alignment(POSITIVE_SCORES, POSITIVE_IOUS, IMAGES, alpha, beta)
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))
    assert not targets.requires_grad
    with pytest.raises(ValueError, match=r"groups must have shape \(8,\), got \(3,\)"):
        task_alignment(scores, ious, torch.tensor([0, 1, 2]), 3)


def test_gradients():
    """By the formulas of the docstrings."""
    logits, labels, ious = samples()
    positive, p = labels > 0, logits.sigmoid()
    logits.requires_grad_()

    def gradient(losses):
        return torch.autograd.grad(losses.sum(), logits)[0]

    negative = 2 * p**2 * (1 - p) * -(1 - p).log() + p**3
    target = (p**0.25 * ious**0.75).clamp(min=0.01)
    torch.testing.assert_close(
        gradient(ia_bce_loss(logits, labels, ious)), torch.where(positive, p - target, negative)
    )
    torch.testing.assert_close(
        gradient(mal_loss(logits, labels, ious)),
        torch.where(positive, p - ious**1.5, p**2.5),
    )
    entropy = -ious * p.log() - (1 - ious) * (1 - p).log()
    focal = 2 * (p - ious) * p * (1 - p) * entropy + (ious - p) ** 2 * (p - ious)
    torch.testing.assert_close(
        gradient(position_supervised_loss(logits, labels, ious)),
        torch.where(positive, 0.25 * focal, 0.75 * negative),
    )
    torch.testing.assert_close(
        gradient(task_aligned_loss(logits, ious)), torch.where(positive, focal, negative)
    )


def test_varifocal_with_constant_weights():
    logits, _, ious = samples()
    p = logits.sigmoid()
    logits.requires_grad_()
    losses = varifocal_loss(logits, ious, constant_weights=True)
    torch.testing.assert_close(losses, varifocal_loss(logits, ious))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    expected = torch.where(ious > 0, ious * (p - ious), 0.75 * p**3)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [ia_bce_loss, mal_loss, position_supervised_loss])
def test_hostile(function, dtype):
    """Logits that are huge, IoUs of 0 and 1, half precision; what negatives have is not read."""
    logits = torch.tensor(HOSTILE * 4).to(dtype).requires_grad_()
    labels = torch.tensor([[1.0] * 18 + [0.0] * 6]).flatten().to(dtype)
    ious = torch.tensor([[0.0] * 6, [0.4] * 6, [1.0] * 6, [math.nan] * 6]).flatten().to(dtype)
    for exponent in (0.0, 0.5, 2.0):
        losses = function(logits, labels, ious, gamma=exponent)
        assert losses.dtype == torch.float32
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert losses.isfinite().all() and gradient.isfinite().all() and (losses >= 0).all()
    assert function(logits, labels, torch.full_like(ious, math.nan))[:18].isnan().all()
    with pytest.raises(ValueError, match=r"same shape, got \(24,\) and \(24,\) and \(3,\)"):
        function(logits, labels, ious[:3])
    with pytest.raises(TypeError, match="labels must be a floating-point tensor, got torch.int64"):
        function(logits, labels.long(), ious)


def of_two_images(**changes):
    """Positives of two images and four ground truths, of which the first has two."""
    changes = {"image_ids": torch.tensor([0, 0, 0, 1, 1]), "num_images": 2, **changes}
    gt_boxes = torch.tensor([10.0, 10, 30, 40]).repeat(5, 1)
    gt_boxes[3:] += torch.tensor([[5.0], [3.0]])
    labels = matched_predictions().labels.clone()
    labels[:5] = torch.tensor([1, 1, 2, 1, 1])
    return matched_predictions(gt_boxes=gt_boxes, labels=labels, **changes)


def registered(name, matched, **options):
    return Criterion(name, "giou", options={name: options})(matched, NORMALIZER)


def test_by_name():
    matched = of_two_images()
    kept = [i for i in range(20) if i not in (5, 6)]  # two are ignored
    ious, scores = matched.ious.detach(), matched.scores.detach()

    def at_class(values):
        full = torch.zeros(20, 3)
        full[matched.positives, matched.classes] = values
        return full[kept]

    logits, labels = matched.logits[kept], at_class(torch.ones(5))
    targets = plain_position_targets(ious.tolist(), matched.image_ids.tolist(), 2.0)
    expected = {
        "ia_bce": ia_bce_loss(logits, labels, at_class(ious)),
        "mal": mal_loss(logits, labels, at_class(ious)),
        "position_supervised": position_supervised_loss(
            logits, labels, at_class(torch.tensor(targets))
        ),
    }
    for name, losses in expected.items():
        loss = registered(name, matched)["loss_cls"]
        torch.testing.assert_close(loss, losses.sum() / NORMALIZER, msg=name)

    targets = plain_alignment(scores.tolist(), ious.tolist(), [0, 0, 1, 2, 3], 1.0, 6.0)
    targets = torch.tensor(targets)
    losses = registered("task_aligned", matched)
    own = task_aligned_loss(logits, at_class(targets)).sum() / targets.sum()
    torch.testing.assert_close(losses["loss_cls"], own)
    boxes = giou_loss(matched.boxes, matched.gt_boxes)
    torch.testing.assert_close(losses["loss_box_reg"], (boxes * targets).sum() / targets.sum())
    plain = registered("task_aligned", matched, weight_localization=False)
    torch.testing.assert_close(plain["loss_box_reg"], boxes.sum() / NORMALIZER)


def test_options_arrive():
    matched = of_two_images()
    options = {
        "ia_bce": {"alpha": 0.9, "gamma": 1.0},
        "mal": {"gamma": 3.0, "alpha": 0.5},
        "position_supervised": {"alpha": 0.4, "gamma": 1.0, "exponent": 4.0},
        "task_aligned": {"alpha": 0.3, "beta": 2.0, "gamma": 1.0, "weight_localization": False},
    }
    assert set(options) == set(NAMES)
    for name, values in options.items():
        assert values.keys() == CLASSIFICATION_LOSSES[name].options.keys()
        default = registered(name, matched)
        for option, value in values.items():
            changed = registered(name, matched, **{option: value})
            assert not torch.stack([*changed.values()]).equal(torch.stack([*default.values()]))


@pytest.mark.parametrize("name", NAMES)
def test_only_scores_are_trained(name):
    """Targets are constants: no gradient reaches the boxes through them."""
    matched = of_two_images()
    loss = registered(name, matched)["loss_cls"]
    assert torch.autograd.grad(loss, matched.boxes, allow_unused=True)[0] is None


def test_boxes_without_overlap():
    """All targets of a ground truth are 0: its positives are negatives of the task-aligned loss."""
    matched = of_two_images()
    matched.boxes = (matched.gt_boxes + 1000).requires_grad_()
    for name in NAMES:
        losses = registered(name, matched)
        total = sum(losses.values())
        total.backward()
        assert total.isfinite() and matched.logits.grad.isfinite().all()
