"""Files in COCO's format: read once, checked, and as arrays. Without PyTorch and Detectron2.

- :mod:`~corrdet.coco.reading`: files, each parsed once and handed on.
- :mod:`~corrdet.coco.rules`: what the format asks of a row.
- :mod:`~corrdet.coco.arrays`: annotations and results as arrays.
- :mod:`~corrdet.coco.columns`: a key of every row as an array, checked.
- :mod:`~corrdet.coco.skipping`: rows that cannot be used, left out and counted.
- :mod:`~corrdet.coco.foreign`, :mod:`~corrdet.coco.naming`: results of other frameworks.
- :mod:`~corrdet.coco.completing`: what annotations may leave out.
- :mod:`~corrdet.coco.masks`: polygons and run lengths, checked and encoded.
- :mod:`~corrdet.coco.checking`: everything that is wrong with a file, for who corrects it.
- :mod:`~corrdet.coco.messages`: how messages show values and lists.
"""

from .arrays import (
    IOU_TYPES,
    Detections,
    GroundTruth,
    detections_from_coco,
    ground_truth_from_coco,
)
from .checking import check_coco_file, mask_problem, polygon_problems
from .foreign import FORMATS
from .masks import MaskError
from .reading import (
    CocoFile,
    detections_from,
    read,
    read_detections,
    read_ground_truth,
    read_once,
)
from .rules import AnnotationError, CocoFileError

__all__ = [
    "FORMATS",
    "IOU_TYPES",
    "AnnotationError",
    "CocoFile",
    "CocoFileError",
    "Detections",
    "GroundTruth",
    "MaskError",
    "check_coco_file",
    "detections_from",
    "detections_from_coco",
    "ground_truth_from_coco",
    "mask_problem",
    "polygon_problems",
    "read",
    "read_detections",
    "read_ground_truth",
    "read_once",
]
