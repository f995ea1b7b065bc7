"""Measures of a detector's results: how good they are, and how well scores and boxes agree.

Without PyTorch and Detectron2.

- :mod:`~corrdet.measures.matching`: detections matched with ground truth, as COCO does.
- :mod:`~corrdet.measures.ranking`: AP with its bounds, AR, oLRP.
- :mod:`~corrdet.measures.correlation`: correlations of scores and IoUs.
- :mod:`~corrdet.measures.results`: all of them, one record of a results file.
- :mod:`~corrdet.measures.bootstrap`: confidence intervals.
"""

from .bootstrap import Bootstrap, bootstrap
from .correlation import correlations, inconsistency, rank_correlation, true_positives
from .matching import Matches, match
from .results import Results, measure

__all__ = [
    "Bootstrap",
    "Matches",
    "Results",
    "bootstrap",
    "correlations",
    "inconsistency",
    "match",
    "measure",
    "rank_correlation",
    "true_positives",
]
