"""Fast NMS of YOLACT (Bolya et al. 2019, Sec. 3.4; https://arxiv.org/abs/1904.02689)."""

import torch
from torch import Tensor

from corrdet.ops import pairwise_iou


@torch.no_grad()
def fast_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, topk: int = 200
) -> Tensor:
    """Remove boxes that overlap a better one of their class, be that itself removed or not.

    Exact NMS lets only boxes that are kept remove others, and so goes through them one by one. Fast
    NMS is one matrix of IoUs, its upper triangle and a maximum over columns, and keeps fewer boxes.
    Of equal scores the first one is better.

    Args:
        boxes: (K, 4) XYXY in pixels.
        scores: (K,).
        classes: (K,) int64.
        iou_threshold: boxes with a higher IoU than this are removed.
        topk: of each class, so many of the best boxes can be kept; n in the paper.

    Returns:
        (D,) int64, indices of the boxes that are kept, the best first.

    Raises:
        TypeError, ValueError: boxes that are no boxes, or a topk below 1.
    """
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order], classes[order]
    # Row i, column j: i is better than j, and of its class.
    better = (classes[:, None] == classes).triu(diagonal=1)
    removed = (better & (pairwise_iou(boxes, boxes) > iou_threshold)).any(dim=0)
    return order[~removed & (better.sum(dim=0) < topk)]
