"""Score voting of PAA (Kim & Lee 2020, Sec. 3.3, Eq. 12; https://arxiv.org/abs/2007.08103)."""

import torch
from torch import Tensor

from corrdet.ops.reference import pairwise_iou


@torch.no_grad()
def score_voting(
    boxes: Tensor,
    classes: Tensor,
    candidates: Tensor,
    candidate_scores: Tensor,
    candidate_classes: Tensor,
    sigma: float = 0.025,
) -> Tensor:
    """Move each box that NMS has kept to the weighted mean of what was predicted around it.

    The weights of the candidates of its class that overlap it are
    ``score * exp(-(1 - IoU)^2 / sigma)``. Scores stay as they are.

    Letters: D boxes, K candidates, of one image.

    Args:
        boxes: (D, 4) kept by NMS, XYXY in pixels.
        classes: (D,) int64.
        candidates: (K, 4) what NMS was given, XYXY in pixels, same dtype.
        candidate_scores: (K,) in [0, 1], same dtype.
        candidate_classes: (K,) int64.
        sigma: how far the votes of candidates reach; 0.025 in the paper.

    Returns:
        (D, 4) boxes. One that nobody votes for, as one without area, stays as it is.

    Raises:
        ValueError: a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    # In plain PyTorch: an exported detector runs without corrdet's operators.
    ious = pairwise_iou(boxes, candidates)
    votes = candidate_scores * torch.exp(-(1 - ious).square() / sigma)
    has_vote = (classes[:, None] == candidate_classes) & (ious > 0)
    votes = torch.where(has_vote, votes, 0.0)
    total = votes.sum(dim=1, keepdim=True)
    return torch.where(total > 0, votes @ candidates / total, boxes)
