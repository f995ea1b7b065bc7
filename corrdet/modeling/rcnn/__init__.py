"""Detectors of two stages: Faster and Mask R-CNN."""

from .rcnn import CorrdetRCNN
from .roi_heads import CorrdetROIHeads, CriterionOutputLayers
from .rpn import CorrdetRPN

__all__ = ["CorrdetRCNN", "CorrdetROIHeads", "CorrdetRPN", "CriterionOutputLayers"]
