"""Label assignment: which sample is trained towards which ground truth."""

from .atss import atss_matching
from .fcos import fcos_matching
from .foveabox import foveabox_matching
from .max_iou import max_iou_matching
from .ssd import hard_negative_mining, refinedet_matching, ssd_matching
from .targets import labels_and_boxes

__all__ = [
    "atss_matching",
    "fcos_matching",
    "foveabox_matching",
    "hard_negative_mining",
    "labels_and_boxes",
    "max_iou_matching",
    "refinedet_matching",
    "ssd_matching",
]
