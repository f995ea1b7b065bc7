"""YOLACT: a detector of one stage with masks."""

from .fast_nms import fast_nms
from .yolact import CorrdetYOLACT

__all__ = ["CorrdetYOLACT", "fast_nms"]
