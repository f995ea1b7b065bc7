"""SSD, DSSD and RefineDet."""

from .backbones import build_ssd_resnet_backbone, build_ssd_resnet_fpn_backbone
from .heads import DSSDHead, RefineDetHead, SSDHead
from .priors import default_boxes
from .refinedet import CorrdetRefineDet
from .ssd import CorrdetDSSD, CorrdetSSD

__all__ = [
    "CorrdetDSSD",
    "CorrdetRefineDet",
    "CorrdetSSD",
    "DSSDHead",
    "RefineDetHead",
    "SSDHead",
    "build_ssd_resnet_backbone",
    "build_ssd_resnet_fpn_backbone",
    "default_boxes",
]
