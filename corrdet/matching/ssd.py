"""Matching and hard negative mining of SSD (Liu et al. 2016), and RefineDet (Zhang et al. 2018)."""

import torch
from torch import Tensor

from corrdet.ops import pairwise_iou

from .common import (
    check_ground_truth,
    check_same_length,
    check_tensor,
    labels_and_boxes,
)


@torch.no_grad()
def ssd_matching(
    priors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    num_classes: int,
    iou_threshold: float = 0.5,
    negative_threshold: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Give every ground truth its best prior, and those that it overlaps enough.

    Each ground truth gets a prior of its own that it overlaps, if one is left: see
    :func:`bipartite_matching`. The other priors get the ground truth that they overlap most, if by
    more than ``iou_threshold`` (Liu et al. 2016, Sec. 2.2; https://arxiv.org/abs/1512.02325). Ties
    go to the first prior and to the first ground truth. YOLACT ignores those that overlap one by
    less than that, but by at least ``negative_threshold``.

    Letters: R priors, M ground truths, C classes.

    Args:
        priors: (R, 4) boxes, XYXY in pixels; float32 or float64.
        gt_boxes: (M, 4) boxes, XYXY in pixels, same dtype.
        gt_classes: (M,) int64 in 0..C-1. For the first step of RefineDet, which tells objects from
            background, zeros.
        num_classes: C; for the first step of RefineDet, 1.
        iou_threshold: 0.5 in all papers.
        negative_threshold: 0.4 in YOLACT; None to ignore no prior.

    Returns:
        labels (R,): 0..C-1, C for background, -1 for ignored; and boxes (R, 4): the matched
        ground-truth box, undefined where the label is not a class.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a negative threshold above the
            other.
    """
    if negative_threshold is not None and not 0 < negative_threshold <= iou_threshold:
        raise ValueError(
            f"negative_threshold must be in (0, {iou_threshold}], got {negative_threshold}"
        )
    check_ground_truth(priors, gt_boxes, gt_classes)
    if len(priors) == 0 or len(gt_boxes) == 0:
        nothing = torch.full((len(priors),), -1, device=priors.device)
        return labels_and_boxes(nothing, gt_boxes, gt_classes, num_classes)
    ious = pairwise_iou(gt_boxes, priors)
    overlap, matched = ious.max(dim=0)
    matched = torch.where(overlap > iou_threshold, matched, -1)
    best = bipartite_matching(ious)
    matched = torch.where(best < 0, matched, best)
    labels, boxes = labels_and_boxes(matched, gt_boxes, gt_classes, num_classes)
    if negative_threshold is not None:
        labels = torch.where((matched < 0) & (overlap >= negative_threshold), -1, labels)
    return labels, boxes


@torch.no_grad()
def bipartite_matching(ious: Tensor) -> Tensor:
    """Give each ground truth one prior, the pair of the largest IoU first, until none is left.

    So have SSD's and YOLACT's authors: a ground truth whose best prior goes to another one gets its
    next best. Pairs of the same IoU go in the order of priors, and then of ground truths.

    In a round, all pairs whose IoU is the largest both of their prior and of their ground truth are
    made at once, as no other pair could come before them. Rounds are few where few share their best
    prior, and never more than ground truths; on a GPU, which would have to be waited for, they are
    always as many.

    Args:
        ious: (M, R) of ground truths and priors; pairs without overlap are not matched.

    Returns:
        (R,) int64, index of a ground truth, or -1.
    """
    num_gts, num_priors = ious.shape
    ground_truths = torch.arange(num_gts, device=ious.device)
    is_left = ground_truths >= 0
    # The last one takes what is not matched.
    matched = torch.full((num_priors + 1,), -1, device=ious.device)
    for _ in range(min(num_gts, num_priors)):
        left = torch.where(is_left[:, None] & (matched[:-1] < 0), ious, 0)
        highest, prior = left.max(dim=1)
        is_made = (highest > 0) & (left.argmax(dim=0)[prior] == ground_truths)
        matched.scatter_(0, torch.where(is_made, prior, num_priors), ground_truths)
        is_left = is_left & ~is_made
        if ious.device.type == "cpu" and not is_made.any():
            break
    return matched[:-1]


@torch.no_grad()
def refinedet_matching(
    refined_anchors: Tensor,
    objectness: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    num_classes: int,
    iou_threshold: float = 0.5,
    min_objectness: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Match RefineDet's second step: as SSD, without the negatives that the first step is sure of.

    The first step is :func:`ssd_matching` of the anchors to one class. It refines them, and says
    how likely each one holds an object. The second takes the refined anchors as priors; negatives
    with an objectness below ``min_objectness`` are not trained on (Zhang et al. 2018, "Negative
    anchor filtering", Sec. 3; https://arxiv.org/abs/1711.06897). Positives always are.

    Letters: R anchors, M ground truths, C classes.

    Args:
        refined_anchors: (R, 4) boxes, XYXY in pixels; float32 or float64.
        objectness: (R,) probability of an object, of the first step.
        gt_boxes: (M, 4) boxes, XYXY in pixels, same dtype as the anchors.
        gt_classes: (M,) int64 in 0..C-1.
        num_classes: C.
        iou_threshold: 0.5 in the paper.
        min_objectness: 0.01; 1 minus the paper's theta, which is of the background.

    Returns:
        labels (R,): 0..C-1, C for background, -1 for ignored; and boxes (R, 4): the matched
        ground-truth box, undefined where the label is not a class.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.
    """
    check_tensor("objectness", objectness, 1, (torch.float32, torch.float64))
    labels, boxes = ssd_matching(
        refined_anchors, gt_boxes, gt_classes, num_classes, iou_threshold=iou_threshold
    )
    check_same_length(refined_anchors=refined_anchors, objectness=objectness)
    easy = (labels == num_classes) & (objectness < min_objectness)
    return torch.where(easy, -1, labels), boxes


@torch.no_grad()
def hard_negative_mining(
    losses: Tensor, labels: Tensor, num_classes: int, ratio: float = 3.0
) -> Tensor:
    """Choose which samples to train on: the positives, and the negatives that are most wrong.

    Of each image the negatives with the highest losses are taken, at most ``ratio`` for each of its
    positives (Liu et al. 2016, Sec. 2.2, "Hard negative mining"). An image without positives has
    none. Ties go to the first sample.

    Letters: N images, R priors, C classes.

    Args:
        losses: (N, R) classification loss of each sample, floating point; those of negatives are
            read.
        labels: (N, R) int64; 0..C-1, C for background, -1 for ignored.
        num_classes: C.
        ratio: negatives for each positive.

    Returns:
        (N, R) bool.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a negative ratio.
    """
    check_tensor("losses", losses, 2, (torch.float32, torch.float64))
    check_tensor("labels", labels, 2, (torch.int64,))
    if losses.shape != labels.shape:
        raise ValueError(
            "losses and labels must have the same shape, "
            f"got {tuple(losses.shape)} and {tuple(labels.shape)}"
        )
    check_same_length(losses=losses, labels=labels)
    if not ratio >= 0:
        raise ValueError(f"ratio must not be negative, got {ratio}")
    negative = labels == num_classes
    positive = (labels >= 0) & ~negative
    allowed = (positive.sum(dim=1, keepdim=True) * ratio).floor()
    hardest = torch.where(negative, losses, -torch.inf)
    order = hardest.argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(labels.shape[1], device=labels.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions)
    return positive | (negative & (rank < allowed))
