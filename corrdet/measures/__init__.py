"""Measures of a detector's results: how good they are, and how well scores and boxes agree.

Without PyTorch and Detectron2.

- :mod:`~corrdet.measures.matching`: detections matched with ground truth, as COCO does.
- :mod:`~corrdet.measures.ranking`: AP with its bounds, AR, oLRP.
- :mod:`~corrdet.measures.correlation`: correlations of scores and IoUs.
- :mod:`~corrdet.measures.results`: all of them, one record of a results file.
- :mod:`~corrdet.measures.errors_by_type`: what detections are wrong about (TIDE).
- :mod:`~corrdet.measures.explaining`: why nothing is found.
- :mod:`~corrdet.measures.bootstrap`: confidence intervals.
"""

from .bootstrap import Bootstrap, bootstrap
from .correlation import correlations, inconsistency, rank_correlation, true_positives
from .errors_by_type import Errors, errors_by_type
from .matching import Matches, match
from .results import Results, measure

__all__ = [
    "Bootstrap",
    "Errors",
    "Matches",
    "Results",
    "bootstrap",
    "correlations",
    "errors_by_type",
    "inconsistency",
    "match",
    "measure",
    "rank_correlation",
    "true_positives",
]
