"""Where to cut off: precision, recall and F1 against the score, and the thresholds that are best.

A detection is right as COCO matches it at an IoU of at least 0.5; over all classes, detections and
objects of all are counted together. A threshold keeps the detections with at least its score.
"""

from dataclasses import dataclass, field

import numpy as np

from .matching import Matches
from .results import Results

GRID = np.arange(101) / 100


@dataclass(frozen=True)
class Point:
    """What a threshold gives; shares in percent, NaN where nothing is kept or to be found."""

    threshold: float
    precision: float
    recall: float
    f1: float
    lrp: float


@dataclass(frozen=True)
class OperatingPoints:
    """Of all classes together and of each.

    Attributes:
        curves: precision, recall, F1, LRP -> (101,) at the thresholds 0:0.01:1, all classes.
        best_f1, best_lrp: the points that are best, over all classes; None without a detection.
        per_class_f1, per_class_lrp: (C,) of each class, None where there is none.
    """

    curves: dict[str, np.ndarray] = field(repr=False)
    best_f1: Point | None
    best_lrp: Point | None
    per_class_f1: list[Point | None] = field(repr=False)
    per_class_lrp: list[Point | None] = field(repr=False)


def operating_points(results: Results) -> OperatingPoints:
    """Curves and best thresholds of the evaluated detections, those ignored left out."""
    matches = results.matches
    num_gt = matches.num_gt[0]
    overall = _Ranking(matches, np.arange(len(matches.scores)), int(num_gt.sum()))
    per_class = []
    for category, count in enumerate(num_gt.tolist()):
        rows = np.arange(*matches.rows(category).indices(len(matches.scores))[:2])
        per_class.append(_Ranking(matches, rows, count))
    return OperatingPoints(
        curves=overall.at(GRID),
        best_f1=overall.best("F1"),
        best_lrp=overall.best("LRP"),
        per_class_f1=[ranking.best("F1") for ranking in per_class],
        per_class_lrp=[ranking.best("LRP") for ranking in per_class],
    )


class _Ranking:
    """Precision and so on after each detection with a score that no later one has."""

    def __init__(self, matches: Matches, rows: np.ndarray, num_gt: int):
        rows = rows[~matches.ignored[0, 0, rows]]
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
        is_true = matches.true_positives[0, 0, rows]
        scores = matches.scores[rows]
        ends = np.flatnonzero(np.diff(scores, append=-np.inf))
        self._num_gt = num_gt
        self._thresholds = scores[ends]
        self._tp = np.cumsum(is_true)[ends]
        self._fp = np.cumsum(~is_true)[ends]
        self._loc = np.cumsum(np.where(is_true, 1 - matches.ious[rows], 0))[ends]

    def _shares(self, tp: np.ndarray, fp: np.ndarray, loc: np.ndarray) -> dict[str, np.ndarray]:
        fn = self._num_gt - tp
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "precision": 100 * tp / (tp + fp),
                "recall": 100 * tp / (tp + fn),
                "F1": 100 * 2 * tp / (2 * tp + fp + fn),
                "LRP": 100 * (loc / (1 - 0.5) + fp + fn) / (tp + fp + fn),
            }

    def at(self, thresholds: np.ndarray) -> dict[str, np.ndarray]:
        """Of any thresholds."""
        places = np.searchsorted(-self._thresholds, -thresholds, side="right")
        counts = (np.concatenate([[0], c])[places] for c in (self._tp, self._fp, self._loc))
        return self._shares(*counts)

    def best(self, key: str) -> Point | None:
        if not self._num_gt or not len(self._thresholds):
            return None
        shares = self._shares(self._tp, self._fp, self._loc)
        values = shares[key]
        place = int(np.nanargmax(values) if key == "F1" else np.nanargmin(values))
        return Point(
            float(self._thresholds[place]),
            *(float(shares[k][place]) for k in ("precision", "recall", "F1", "LRP")),
        )
