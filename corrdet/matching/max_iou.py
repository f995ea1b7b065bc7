"""Matching by the largest IoU, as in Faster R-CNN and RetinaNet."""

from collections.abc import Callable

import torch
from torch import Tensor

from corrdet.ops import pairwise_iou


@torch.no_grad()
def max_iou_matching(
    priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, matcher: Callable, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Give every prior the ground truth that it overlaps most, if it does so enough.

    Letters: R priors, M ground truths, C classes.

    Args:
        priors: (R, 4) boxes, XYXY.
        gt_boxes: (M, 4) boxes, XYXY.
        gt_classes: (M,) int64 in 0..C-1.
        matcher: detectron2's Matcher: maps an (M, R) IoU matrix to the matched ground truths (R,)
            and to labels (R,) of 1 foreground, 0 background, -1 ignored.
        num_classes: C.

    Returns:
        labels (R,): 0..C-1, C for background, -1 for ignored; and boxes (R, 4): the matched
        ground-truth box, undefined where the label is not a class.
    """
    matched, foreground = matcher(pairwise_iou(gt_boxes, priors))
    if len(gt_boxes) == 0:
        return torch.full_like(matched, num_classes), torch.zeros_like(priors)
    labels = gt_classes[matched]
    labels[foreground == 0] = num_classes
    labels[foreground == -1] = -1
    return labels, gt_boxes[matched]
