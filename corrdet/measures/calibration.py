"""Whether scores can be read as what they say: calibration errors of detectors.

- D-ECE (Kueppers et al., CVPR-W 2020): score against precision, over all classes, in bins of score;
  a detection is right at an IoU of at least 0.5, as COCO matches.
- LaECE_0 (Oksuz et al., CVPR 2023; Kuzucu et al., ECCV 2024): score against the IoU with the
  matched object, 0 without one, in bins of score, the mean over classes; an object may be matched
  at any IoU above 0 (tau = 0).
- LaACE_0: the same, every detection a bin of its own: the mean of abs(score - IoU).

A detector is said to be calibrated by isotonic regression where each class's scores are replaced
by the IoU that detections of such a score have in the other half of the images.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from .matching import Matches, match
from .results import Results, class_correlations, mean_of_defined

BINS = 25
# tau = 0: an overlap, but no box that touches nothing takes an object from those that touch it.
ANY_IOU = np.array([np.nextafter(0, 1)])


@dataclass(frozen=True)
class Calibration:
    """Calibration errors in percent, as they are and after isotonic regression.

    Attributes:
        errors: D-ECE, LaECE_0, LaACE_0, and beta_cls -> value.
        calibrated: the same of the calibrated scores; None with fewer than two images.
        per_class: LaECE_0 and LaACE_0 -> (C,); NaN without detections or objects.
        scores: (BINS,) mean score in bins of score, over all classes; NaN in empty ones.
        precision: (BINS,) share that is right at an IoU of 0.5.
        ious: (BINS,) mean IoU with the matched object, 0 without one.
        counts: (BINS,) detections.
    """

    errors: dict[str, float]
    calibrated: dict[str, float] | None
    per_class: dict[str, np.ndarray] = field(repr=False)
    scores: np.ndarray = field(repr=False)
    precision: np.ndarray = field(repr=False)
    ious: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)


def calibration(results: Results) -> Calibration:
    """Calibration errors of the evaluated detections, those ignored left out."""
    matches, gt = results.matches, results.ground_truth
    at_any = match(gt, results.detections, results.max_detections, ANY_IOU)
    targets = np.where(at_any.true_positives[0, 0], at_any.ious, 0.0)
    errors, per_class = _errors(matches, at_any, targets, matches.scores)
    calibrated = None
    if len(gt.image_ids) > 1:
        scores = _isotonic(matches, at_any, targets)
        calibrated, _ = _errors(matches, at_any, targets, scores)
    is_counted = ~matches.ignored[0, 0]
    bins = _bins(matches.scores[is_counted])
    counts = np.bincount(bins, minlength=BINS)

    def mean(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(bins, values[is_counted], minlength=BINS) / counts

    return Calibration(
        errors=errors,
        calibrated=calibrated,
        per_class=per_class,
        scores=mean(matches.scores),
        precision=mean(matches.true_positives[0, 0].astype(float)),
        ious=mean(targets),
        counts=counts,
    )


def _bins(scores: np.ndarray) -> np.ndarray:
    """Of each score: its bin; the lower end of a bin belongs to the one before, but for 0."""
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, BINS - 1)


def expected_error(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over bins of abs(mean score - mean target), weighed by their numbers; NaN of none."""
    if not len(scores):
        return float("nan")
    bins = _bins(scores)
    gaps = np.bincount(bins, scores - targets, minlength=BINS)
    return float(np.abs(gaps).sum() / len(scores))


def _errors(
    matches: Matches, at_any: Matches, targets: np.ndarray, scores: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The errors of scores, in percent, and those of each class."""
    is_counted, is_true = ~matches.ignored[0, 0], matches.true_positives[0, 0]
    num_categories = matches.num_gt.shape[1]
    la_ece, la_ace = np.full((2, num_categories), np.nan)
    for category in np.flatnonzero(matches.num_gt[0]):
        rows = matches.rows(int(category))
        kept = ~at_any.ignored[0, 0, rows]
        own, wanted = scores[rows][kept], targets[rows][kept]
        la_ece[category] = 100 * expected_error(own, wanted)
        la_ace[category] = 100 * np.abs(own - wanted).mean() if len(own) else np.nan
    found = {
        "D-ECE": 100 * expected_error(scores[is_counted], is_true[is_counted].astype(float)),
        "LaECE_0": mean_of_defined(la_ece),
        "LaACE_0": mean_of_defined(la_ace),
        "beta_cls": 100 * mean_of_defined(class_correlations(replace(matches, scores=scores))),
    }
    return found, {"LaECE_0": la_ece, "LaACE_0": la_ace}


def _isotonic(matches: Matches, at_any: Matches, targets: np.ndarray) -> np.ndarray:
    """(D,) scores, each class's in each half of the images as the other half's IoUs have them."""
    from scipy.optimize import isotonic_regression

    scores = matches.scores.copy()
    half = matches.images % 2
    for category in range(matches.num_gt.shape[1]):
        rows = np.arange(*matches.rows(category).indices(len(scores))[:2])
        for part in (0, 1):
            fit = rows[(half[rows] != part) & ~at_any.ignored[0, 0, rows]][::-1]
            own = rows[half[rows] == part]
            if len(fit) and len(own):
                values, counts = np.unique(matches.scores[fit], return_counts=True)
                firsts = np.cumsum(counts) - counts
                means = np.add.reduceat(targets[fit], firsts) / counts
                fitted = isotonic_regression(means, weights=counts).x
                scores[own] = np.interp(matches.scores[own], values, fitted)
    return scores
