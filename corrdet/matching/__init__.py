"""Label assignment: which sample is trained towards which ground truth."""

from .max_iou import max_iou_matching

__all__ = ["max_iou_matching"]
