"""Adaptive training sample selection (Zhang et al. 2020, https://arxiv.org/abs/1912.02424)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from corrdet.ops import elementwise_iou

from .common import best_claims, centers, check_ground_truth, check_levels, labels_and_boxes


@torch.no_grad()
def atss_matching(
    priors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    priors_per_level: Sequence[int],
    num_classes: int,
    topk: int = 9,
) -> tuple[Tensor, Tensor]:
    """Give every ground truth the near priors whose IoU stands out (Zhang et al. 2020, Alg. 1).

    The candidates of a ground truth are, of each level, the ``topk`` priors whose centres are
    nearest to its own. Positive are those with an IoU of at least the mean plus the standard
    deviation of the candidates' IoUs, and with their centre inside the ground truth. A prior that
    several claim goes to the largest IoU. Ties of distance go to the first prior, ties of IoU to
    the first ground truth.

    The standard deviation divides by n - 1, as the paper's results were made with; of one candidate
    it is 0. Letters: R priors, M ground truths, C classes.

    Args:
        priors: (R, 4) boxes, XYXY in pixels, level by level; float32 or float64.
        gt_boxes: (M, 4) boxes, XYXY in pixels, same dtype.
        gt_classes: (M,) int64 in 0..C-1.
        priors_per_level: how many of the priors each level has.
        num_classes: C.
        topk: candidates of a ground truth in a level, k in the paper.

    Returns:
        labels (R,): 0..C-1, or C for background; and boxes (R, 4): the matched ground-truth box,
        undefined where the label is C.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, levels that do not sum to R, or a topk
            below 1.
    """
    check_ground_truth(priors, gt_boxes, gt_classes)
    check_levels(priors, priors_per_level)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    if len(priors) == 0 or len(gt_boxes) == 0:
        nothing = torch.full((len(priors),), -1, device=priors.device)
        return labels_and_boxes(nothing, gt_boxes, gt_classes, num_classes)

    candidates = _nearest_priors(priors, gt_boxes, priors_per_level, topk)  # (M, K)
    num_gts, num_candidates = candidates.shape
    repeated = gt_boxes[:, None].expand(-1, num_candidates, -1)
    ious = elementwise_iou(priors[candidates].flatten(0, 1), repeated.flatten(0, 1))
    ious = ious.view(num_gts, num_candidates)

    # Of equal values std_mean's mean is that value. Their sum over their number may be rounded up,
    # above all of them, and an object in a regular grid would get no prior.
    std, mean = torch.std_mean(ious, dim=1, correction=min(1, num_candidates - 1))
    points = centers(priors)[candidates]
    inside = ((points > repeated[..., :2]) & (points < repeated[..., 2:])).all(dim=2)
    positive = inside & (ious >= (mean + std)[:, None])

    ground_truths = torch.arange(num_gts, device=priors.device)[:, None].expand_as(candidates)
    matched = best_claims(
        candidates.flatten(),
        ground_truths.flatten(),
        ious.flatten(),
        positive.flatten(),
        len(priors),
    )
    return labels_and_boxes(matched, gt_boxes, gt_classes, num_classes)


def _nearest_priors(
    priors: Tensor, gt_boxes: Tensor, priors_per_level: Sequence[int], topk: int
) -> Tensor:
    """(M, K) int64: of every level the priors nearest to each ground truth, by their centres."""
    gt_centers = centers(gt_boxes)
    candidates, start = [], 0
    for level_centers in centers(priors).split(list(priors_per_level)):
        offsets = gt_centers[:, None] - level_centers
        distances = offsets.square().sum(dim=2).float()  # (M, R of this level)
        # topk may return any of equal values. The bits of floats that are not negative are in the
        # order of the floats, so a key of distance and index has no ties.
        index = torch.arange(len(level_centers), device=priors.device)
        keys = (distances.view(torch.int32).long() << 32) + index
        nearest = keys.topk(min(topk, len(level_centers)), dim=1, largest=False).indices
        candidates.append(nearest + start)
        start += len(level_centers)
    return torch.cat(candidates, dim=1)
