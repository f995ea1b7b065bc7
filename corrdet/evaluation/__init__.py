"""Measures of how well scores and IoUs agree, and the Detectron2 evaluator that reports them."""

from .bootstrap import Bootstrap, bootstrap
from .coco_files import (
    CocoFileError,
    Detections,
    GroundTruth,
    detections_from_coco,
    ground_truth_from_coco,
    read_detections,
    read_ground_truth,
)
from .correlation import (
    correlations,
    inconsistency,
    rank_correlation,
    true_positives,
)
from .evaluator import CorrelationEvaluator
from .matching import Matches, match
from .measures import Results, measure

__all__ = [
    "Bootstrap",
    "CocoFileError",
    "CorrelationEvaluator",
    "Detections",
    "GroundTruth",
    "Matches",
    "Results",
    "bootstrap",
    "correlations",
    "detections_from_coco",
    "ground_truth_from_coco",
    "inconsistency",
    "match",
    "measure",
    "rank_correlation",
    "read_detections",
    "read_ground_truth",
    "true_positives",
]
