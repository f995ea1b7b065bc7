"""Checks of arguments that the matchings share, and how levels are told apart."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
