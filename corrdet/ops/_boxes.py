"""What the IoUs share: the names of their kinds, checks of boxes, and the IoU in plain PyTorch."""

import math

import torch
from torch import Tensor

from ._checks import check_floating, compute_dtype

# As in csrc/iou/iou.h.
IOU_KINDS = ("iou", "giou", "diou", "ciou")


def check_boxes(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise unless both are (N, 4) boxes of one dtype on one device."""
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_floating(name, boxes)
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (N, 4), got {tuple(boxes.shape)}")
    if boxes1.dtype != boxes2.dtype:
        raise TypeError(
            f"boxes1 and boxes2 must have the same dtype, got {boxes1.dtype} and {boxes2.dtype}"
        )
    if boxes1.device != boxes2.device:
        raise ValueError(
            f"boxes1 and boxes2 must be on the same device, got {boxes1.device} and {boxes2.device}"
        )


def check_kind(kind: str) -> None:
    """Raise a ValueError unless `kind` names a kind of IoU."""
    if kind not in IOU_KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, IOU_KINDS))}, got {kind!r}")


def check_pairs(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise a ValueError unless there are as many boxes in one as in the other."""
    if boxes1.shape[0] != boxes2.shape[0]:
        raise ValueError(
            "boxes1 and boxes2 must hold the same number of boxes, got "
            f"{boxes1.shape[0]} and {boxes2.shape[0]}"
        )


def example_boxes(size: int, seed: int) -> Tensor:
    """Boxes that overlap often."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(size, 2, generator=generator) * 20
    return torch.cat([corners, corners + 1 + torch.rand(size, 2, generator=generator) * 9], 1)


def reference_iou(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """IoUs of boxes (..., 4) whose leading dimensions broadcast; the halves as in the kernels."""
    dtype = compute_dtype(boxes1)
    return _iou(boxes1.to(dtype), boxes2.to(dtype), kind).to(boxes1.dtype)


def _iou(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    # An inverted side has length 0, at its start.
    x2, y2 = torch.where(x2 < x1, x1, x2), torch.where(y2 < y1, y1, y2)
    u2, v2 = torch.where(u2 < u1, u1, u2), torch.where(v2 < v1, v1, v2)

    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    intersection = torch.where(width > 0, width, 0) * torch.where(height > 0, height, 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    iou = _divide(intersection, union)
    if kind == "iou":
        return iou

    hull_width = torch.maximum(x2, u2) - torch.minimum(x1, u1)
    hull_height = torch.maximum(y2, v2) - torch.minimum(y1, v1)
    if kind == "giou":
        hull = hull_width * hull_height
        return iou - _divide(hull - union, hull)

    dx = ((x1 - u1) + (x2 - u2)) / 2
    dy = ((y1 - v1) + (y2 - v2)) / 2
    diou = iou - _divide(dx**2 + dy**2, hull_width**2 + hull_height**2)
    if kind == "diou":
        return diou

    turn = _angle(x2 - x1, y2 - y1) - _angle(u2 - u1, v2 - v1)
    v = 4 / math.pi**2 * turn**2
    alpha = _divide(v, 1 - iou + v).detach()
    return diou - alpha * v


def _angle(width: Tensor, height: Tensor) -> Tensor:
    """Of the diagonal; without gradient where the squares are 0.

    PyTorch's own has one of 0 there too, but NaN in forward mode and if differentiated again.
    """
    # Not -0, between 0 and -0: atan2(0, -0) is pi.
    width, height = width + 0.0, height + 0.0
    is_point = width.detach() ** 2 + height.detach() ** 2 == 0
    constant = torch.atan2(width.detach(), height.detach())
    width, height = torch.where(is_point, 1, width), torch.where(is_point, 1, height)
    return torch.where(is_point, constant, torch.atan2(width, height))


def _divide(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Quotient, 0 without gradient where the divisor is 0."""
    is_zero = divisor == 0
    return torch.where(is_zero, 0, dividend / torch.where(is_zero, 1, divisor))
