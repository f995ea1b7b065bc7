"""Measures of a detector's results: how good they are, and how well scores and boxes agree.

Without PyTorch and Detectron2.

- :mod:`~corrdet.measures.matching`: detections matched with ground truth, as COCO does.
- :mod:`~corrdet.measures.ranking`: AP with its bounds, AR, oLRP.
- :mod:`~corrdet.measures.correlation`: correlations of scores and IoUs.
- :mod:`~corrdet.measures.results`: all of them, one record of a results file.
- :mod:`~corrdet.measures.errors_by_type`: what detections are wrong about (TIDE).
- :mod:`~corrdet.measures.operating`: precision, recall and F1 against the score.
- :mod:`~corrdet.measures.calibration`: whether scores can be read as what they say.
- :mod:`~corrdet.measures.confusion`: which classes are taken for which.
- :mod:`~corrdet.measures.evaluating`: from files to measures in one call.
- :mod:`~corrdet.measures.explaining`: why nothing is found.
- :mod:`~corrdet.measures.bootstrap`: confidence intervals.
"""

from .bootstrap import Bootstrap, bootstrap
from .calibration import Calibration, calibration
from .confusion import Confusion, confusion
from .correlation import correlations, inconsistency, rank_correlation, true_positives
from .errors_by_type import Errors, errors_by_type
from .evaluating import evaluate
from .matching import Matches, match
from .operating import OperatingPoints, Point, operating_points
from .results import Results, measure

__all__ = [
    "Bootstrap",
    "Calibration",
    "Confusion",
    "Errors",
    "Matches",
    "OperatingPoints",
    "Point",
    "Results",
    "bootstrap",
    "calibration",
    "confusion",
    "correlations",
    "errors_by_type",
    "evaluate",
    "inconsistency",
    "match",
    "measure",
    "operating_points",
    "rank_correlation",
    "true_positives",
]
