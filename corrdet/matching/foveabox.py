"""Matching of FoveaBox (Kong et al. 2020, https://arxiv.org/abs/1904.03797)."""

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
def foveabox_matching(
    priors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    priors_per_level: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
    num_classes: int,
    sigma: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """Give every location the smallest ground truth whose fovea it lies in, on the levels for it.

    The fovea is the ground truth shrunk around its centre by ``sigma``, its border included. A
    level is for the ground truths whose scale, the square root of the area, is in its range, bounds
    included (Kong et al. 2020, Sec. III). Of ground truths with equal area the first one wins.

    The paper's range of a level with basic scale r is (r / eta, r * eta), with eta = 2 and r = 32,
    64, ... 512 from P3 to P7. Neighbouring ranges overlap, so an object is learned on two levels.
    The authors' configs open the outer ranges, to (1, 64) and (256, 2048): objects beyond them
    would not be learned.

    Letters: R locations, M ground truths, C classes.

    Args:
        priors: (R, 4) boxes, XYXY in pixels, level by level, their centres the locations; float32
            or float64.
        gt_boxes: (M, 4) boxes, XYXY in pixels, same dtype.
        gt_classes: (M,) int64 in 0..C-1.
        priors_per_level: how many of the priors each level has.
        scale_ranges: (low, high) of each level, in pixels.
        num_classes: C.
        sigma: sides of the fovea over those of the ground truth, in (0, 1].

    Returns:
        labels (R,): 0..C-1, or C for background; and boxes (R, 4): the matched ground-truth box,
        undefined where the label is C.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, levels that do not sum to R, ranges
            that are not one (low, high) for each level, or a sigma outside (0, 1].
    """
    check_ground_truth(priors, gt_boxes, gt_classes)
    check_levels(priors, priors_per_level, scale_ranges)
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma must be in (0, 1], got {sigma}")
    if len(priors) == 0 or len(gt_boxes) == 0:
        nothing = torch.full((len(priors),), -1, device=priors.device)
        return labels_and_boxes(nothing, gt_boxes, gt_classes, num_classes)

    gt_areas = areas(gt_boxes)
    order = gt_areas.argsort(stable=True)
    scales, ordered = gt_areas[order].sqrt(), gt_boxes[order]
    half_sides = (ordered[:, 2:] - ordered[:, :2]) * (sigma / 2)
    claims = []
    for level_priors, (low, high) in zip(
        priors.split(list(priors_per_level)), scale_ranges, strict=True
    ):
        # (M, R of this level, 2)
        offsets = (centers(level_priors) - centers(ordered)[:, None]).abs()
        in_fovea = (offsets <= half_sides[:, None]).all(dim=2)
        in_range = (scales >= low) & (scales <= high)
        claims.append(in_fovea & in_range[:, None])
    matched = smallest_claims(torch.cat(claims, dim=1), order)
    return labels_and_boxes(matched, gt_boxes, gt_classes, num_classes)
