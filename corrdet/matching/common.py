"""What the matchings share: checks of arguments, and from matched ground truths to labels."""

from collections.abc import Sequence

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


def check_boxes(name: str, boxes: Tensor) -> None:
    """
    Raises:
        TypeError, ValueError: not a float32 or float64 tensor of shape (N, 4).
    """
    check_tensor(name, boxes, 2, (torch.float32, torch.float64))
    if boxes.shape[1] != 4:
        raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")


def check_tensor(name: str, tensor: Tensor, dim: int, dtypes: Sequence[torch.dtype]) -> None:
    """
    Raises:
        TypeError, ValueError: not a tensor of one of the dtypes and with so many dimensions.
    """
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a {names} tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"{name} must be a {names} tensor, got {str(tensor.dtype).removeprefix('torch.')}"
        )
    if tensor.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got shape {tuple(tensor.shape)}")


def check_same_length(**tensors: Tensor) -> None:
    """
    Raises:
        ValueError: not all on one device and of one length.
    """
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        got = ", ".join(str(len(tensor)) for tensor in tensors.values())
        raise ValueError(f"{', '.join(tensors)} must have the same length, got {got}")
    check_same_device(**tensors)


def check_same_device(**tensors: Tensor) -> None:
    """
    Raises:
        ValueError: not all on one device.
    """
    if len({tensor.device for tensor in tensors.values()}) > 1:
        got = ", ".join(str(tensor.device) for tensor in tensors.values())
        raise ValueError(f"{', '.join(tensors)} must be on the same device, got {got}")


def check_ground_truth(priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor) -> None:
    """
    Raises:
        TypeError, ValueError: not priors (R, 4), boxes (M, 4) of the same dtype, and int64 classes
            (M,), all on one device.
    """
    check_boxes("priors", priors)
    check_boxes("gt_boxes", gt_boxes)
    check_tensor("gt_classes", gt_classes, 1, (torch.int64,))
    if priors.dtype != gt_boxes.dtype:
        raise TypeError(
            f"priors and gt_boxes must have the same dtype, got {priors.dtype} and {gt_boxes.dtype}"
        )
    check_same_length(gt_boxes=gt_boxes, gt_classes=gt_classes)
    check_same_device(priors=priors, gt_boxes=gt_boxes)


def check_levels(
    priors: Tensor, priors_per_level: Sequence[int], ranges: Sequence | None = None
) -> None:
    """
    Raises:
        ValueError: the numbers of priors do not sum to that of all priors, or the ranges are not
            one (low, high) for each level.
    """
    if any(count < 0 for count in priors_per_level) or sum(priors_per_level) != len(priors):
        raise ValueError(
            f"priors_per_level must sum to the {len(priors)} priors, got {tuple(priors_per_level)}"
        )
    if ranges is None:
        return
    if len(ranges) != len(priors_per_level):
        raise ValueError(
            f"expected a range for each of the {len(priors_per_level)} levels, got {len(ranges)}"
        )
    for bounds in ranges:
        if len(bounds) != 2 or not bounds[0] <= bounds[1]:
            raise ValueError(f"a range must be (low, high) with low <= high, got {bounds!r}")
