"""Detectors of regions: Faster, Mask and Cascade R-CNN."""

from .output_layers import CriterionOutputLayers
from .rcnn import CorrdetRCNN
from .roi_heads import CorrdetCascadeROIHeads, CorrdetROIHeads
from .rpn import CorrdetRPN

__all__ = [
    "CorrdetCascadeROIHeads",
    "CorrdetRCNN",
    "CorrdetROIHeads",
    "CorrdetRPN",
    "CriterionOutputLayers",
]
