"""Label assignment: which sample is trained towards which ground truth."""

from .atss import atss_matching
from .common import labels_and_boxes
from .fcos import fcos_matching
from .foveabox import foveabox_matching
from .hungarian import hungarian_matching
from .max_iou import max_iou_matching
from .mixture import TwoGaussians, fit_two_gaussians
from .paa import paa_candidates, paa_matching, paa_star_costs
from .ssd import hard_negative_mining, refinedet_matching, ssd_matching

__all__ = [
    "TwoGaussians",
    "atss_matching",
    "fcos_matching",
    "fit_two_gaussians",
    "foveabox_matching",
    "hard_negative_mining",
    "hungarian_matching",
    "labels_and_boxes",
    "max_iou_matching",
    "paa_candidates",
    "paa_matching",
    "paa_star_costs",
    "refinedet_matching",
    "ssd_matching",
]
