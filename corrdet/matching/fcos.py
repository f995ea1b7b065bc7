"""Matching of FCOS (Tian et al. 2019, https://arxiv.org/abs/1904.01355)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .common import (
    areas,
    centers,
    check_ground_truth,
    check_levels,
    labels_and_boxes,
    smallest_claims,
)


@torch.no_grad()
def fcos_matching(
    priors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    priors_per_level: Sequence[int],
    regression_ranges: Sequence[tuple[float, float]],
    num_classes: int,
    center_sampling_radius: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Give every location the smallest ground truth that it lies in and that its level is for.

    A location lies in a ground truth when its distances to all four sides are positive; the level
    is for it when the largest of them is in the level's range, bounds included (Tian et al. 2019,
    Sec. 3.2). With centre sampling the location must also be near the centre of the ground truth,
    by less than the radius times the stride along both axes. Of ground truths with equal area the
    first one wins.

    Letters: R locations, M ground truths, C classes.

    Args:
        priors: (R, 4) squares, XYXY in pixels, level by level: around each location, with the
            stride of its level as side. float32 or float64.
        gt_boxes: (M, 4) boxes, XYXY in pixels, same dtype.
        gt_classes: (M,) int64 in 0..C-1.
        priors_per_level: how many of the priors each level has.
        regression_ranges: (low, high) of each level, in pixels; in the paper (0, 64), (64, 128),
            (128, 256), (256, 512), (512, infinity).
        num_classes: C.
        center_sampling_radius: in strides, for example 1.5; None for none.

    Returns:
        labels (R,): 0..C-1, or C for background; and boxes (R, 4): the matched ground-truth box,
        undefined where the label is C.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, levels that do not sum to R, ranges
            that are not one (low, high) for each level, or a radius that is not positive.
    """
    check_ground_truth(priors, gt_boxes, gt_classes)
    check_levels(priors, priors_per_level, regression_ranges)
    if center_sampling_radius is not None and not center_sampling_radius > 0:
        raise ValueError(f"center_sampling_radius must be positive, got {center_sampling_radius}")
    if len(priors) == 0 or len(gt_boxes) == 0:
        nothing = torch.full((len(priors),), -1, device=priors.device)
        return labels_and_boxes(nothing, gt_boxes, gt_classes, num_classes)

    order = areas(gt_boxes).argsort(stable=True)
    ordered = gt_boxes[order][:, None]  # (M, 1, 4)
    claims = []
    for level_priors, (low, high) in zip(
        priors.split(list(priors_per_level)), regression_ranges, strict=True
    ):
        points = centers(level_priors)  # (R of this level, 2)
        to_start, to_end = points - ordered[..., :2], ordered[..., 2:] - points
        nearest = torch.minimum(to_start, to_end).amin(dim=2)
        farthest = torch.maximum(to_start, to_end).amax(dim=2)
        claim = (nearest > 0) & (farthest >= low) & (farthest <= high)
        if center_sampling_radius is not None:
            # Half the difference is the offset from the centre.
            offset = (to_start - to_end).abs().amax(dim=2) / 2
            claim &= offset < center_sampling_radius * (level_priors[:, 2] - level_priors[:, 0])
        claims.append(claim)
    matched = smallest_claims(torch.cat(claims, dim=1), order)
    return labels_and_boxes(matched, gt_boxes, gt_classes, num_classes)
