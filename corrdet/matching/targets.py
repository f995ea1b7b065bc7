"""From the ground truth that each prior is matched with, to what the losses read."""

import torch
from torch import Tensor


def labels_and_boxes(
    matched: Tensor, gt_boxes: Tensor, gt_classes: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Look up the class and the box of the ground truth that each prior is matched with.

    Letters: R priors, M ground truths, C classes.

    Args:
        matched: (R,) int64, index of a ground truth, or -1 for background.
        gt_boxes: (M, 4).
        gt_classes: (M,) int64 in 0..C-1.
        num_classes: C.

    Returns:
        labels (R,): 0..C-1, or C for background; and boxes (R, 4), undefined where the label is C.
    """
    if len(gt_boxes) == 0:
        return torch.full_like(matched, num_classes), gt_boxes.new_zeros(len(matched), 4)
    index = matched.clamp(min=0)
    return torch.where(matched < 0, num_classes, gt_classes[index]), gt_boxes[index]


def best_claims(
    priors: Tensor, ground_truths: Tensor, ious: Tensor, valid: Tensor, num_priors: int
) -> Tensor:
    """Give each claimed prior to the claim with the largest IoU, ties to the first ground truth.

    The result does not depend on the order of the claims, and nothing waits for the device.

    Args:
        priors: (Q,) int64, the prior that each claim is for.
        ground_truths: (Q,) int64, the ground truth that claims it.
        ious: (Q,) their IoU, not negative.
        valid: (Q,) bool, the claims that count.
        num_priors: R.

    Returns:
        (R,) int64, index of a ground truth, or -1 where nothing claims.
    """
    ious = torch.where(valid, ious, -1.0)
    highest = ious.new_full((num_priors,), -1.0).scatter_reduce(0, priors, ious, "amax")
    nobody = torch.iinfo(torch.int64).max
    winners = torch.where(valid & (ious == highest[priors]), ground_truths, nobody)
    matched = winners.new_full((num_priors,), nobody).scatter_reduce(0, priors, winners, "amin")
    return torch.where(matched == nobody, -1, matched)


def smallest_claims(claims: Tensor, order: Tensor) -> Tensor:
    """Give each prior to the first ground truth, in the given order, that claims it.

    Args:
        claims: (M, R) bool, rows in the order of ``order``.
        order: (M,) int64, the ground truth of each row: by area, the smallest first.

    Returns:
        (R,) int64, index of a ground truth, or -1 where nothing claims.
    """
    # The maximum comes with the index of the first maximal value.
    claimed, first = claims.max(dim=0)
    return torch.where(claimed, order[first], -1)


def areas(boxes: Tensor) -> Tensor:
    """(N,) areas of boxes (N, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def centers(boxes: Tensor) -> Tensor:
    """(N, 2) centres of boxes (N, 4)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2
