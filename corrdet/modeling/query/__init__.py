"""Detectors of learned queries, without priors and without NMS."""

from .detr import CorrdetDETR
from .sparse_rcnn import CorrdetSparseRCNN

__all__ = ["CorrdetDETR", "CorrdetSparseRCNN"]
