"""Measures of a ranking that is matched with ground truth: AP with its bounds, AR, and oLRP.

Every measure is a function of weights of the images. With the weight 1 for all it is the measure
itself, to pycocotools' last bit; with the counts of images drawn with replacement it is the
measure of that sample, so that a bootstrap sorts and matches nothing again.
"""

from dataclasses import dataclass

import numpy as np

from .matching import AREA_RANGES, Matches

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # as in pycocotools.cocoeval.Params
# Rounded to the nearest number for each, so that a score of 0.35 reaches the threshold 0.35.
LRP_THRESHOLDS = np.arange(101) / 100


class PrecisionCurves:
    """Precision at COCO's 101 recall thresholds, for all IoU thresholds and categories.

    Interpolated precision and recall change at true positives only, so only these are looked at.
    """

    def __init__(
        self,
        categories: np.ndarray,
        true_positives: np.ndarray,
        ignored: np.ndarray,
        num_categories: int,
    ):
        """
        Args:
            categories: (D,) of the detections, ascending; best first within one.
            true_positives: (T, D) bool.
            ignored: (T, D) bool.
            num_categories: C.
        """
        self.shape = len(true_positives), num_categories
        size = len(categories)
        starts = np.searchsorted(categories, np.arange(num_categories))
        threshold, self._places = np.nonzero(true_positives)
        true_categories = categories[self._places]
        self._starts = starts[true_categories]
        # One segment for a threshold and a category, in that order.
        self._segments = threshold * num_categories + true_categories
        self._bounds = np.searchsorted(
            self._segments, np.arange(len(true_positives) * num_categories + 1)
        )
        ignored_threshold, self._ignored = np.nonzero(ignored)
        key = ignored_threshold * size + self._ignored
        self._ignored_before = np.searchsorted(key, threshold * size + self._places)
        self._ignored_before_start = np.searchsorted(key, threshold * size + self._starts)

    def precision(self, weights: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
        """Interpolated precision, as pycocotools' ``eval["precision"]``.

        Args:
            weights: (D,) of the detections: of their images, integer values.
            num_gt: (C,) number of ground truths, weighted by their images.

        Returns:
            (T, C, 101); NaN for categories without ground truth.
        """
        num_thresholds, num_categories = self.shape
        seen = _sums_before(weights)
        true = np.cumsum(weights[self._places])
        before = np.concatenate([[0], true])[self._bounds]  # (T x C + 1,)
        tp = true - before[self._segments]
        fp = seen[self._places + 1] - seen[self._starts] - tp
        ignored = _sums_before(weights[self._ignored])
        fp -= ignored[self._ignored_before] - ignored[self._ignored_before_start]
        precision = tp / (fp + tp + np.spacing(1))
        for start, stop in zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True):
            if stop - start > 1:
                segment = precision[start:stop][::-1]
                np.maximum.accumulate(segment, out=segment)

        needed = _true_positives_needed(num_gt)  # (C, 101)
        needed = np.broadcast_to(needed, (num_thresholds, *needed.shape)).reshape(-1, 101)
        reached = needed <= np.diff(before)[:, None]
        at = np.searchsorted(true, before[:-1, None] + needed)
        precision = np.append(precision, 0.0)
        interpolated = np.where(reached, precision[np.minimum(at, len(true))], 0.0)
        interpolated = interpolated.reshape(num_thresholds, num_categories, 101)
        interpolated[:, num_gt == 0] = np.nan
        return interpolated


def bound_order(categories: np.ndarray, is_true: np.ndarray, ious: np.ndarray, *, upper: bool):
    """Ranking in which each category's true positives follow, or oppose, the order of their IoUs.

    The true positives change places among themselves; scores and false positives stay where they
    are, and so does AP50 ("Correlation Loss", section 3.2.1, Table 3.2).

    Args:
        categories: (D,) ascending.
        is_true: (D,) bool, true positives at an IoU of 0.5.
        ious: (D,) with the matched ground truth.
        upper: largest IoU first, else last.

    Returns:
        (D,): which detection takes which place.
    """
    order = np.arange(len(categories))
    rows = np.flatnonzero(is_true)
    key = -ious[rows] if upper else ious[rows]
    order[rows] = rows[np.lexsort((key, categories[rows]))]
    return order


def average_recall(matches: Matches, area: str = "all", max_detections: int = 100) -> np.ndarray:
    """Recall of a limited number of detections an image and category (pycocotools' AR).

    Returns:
        (T, C) for the T IoU thresholds; NaN for categories without ground truth.
    """
    row = list(AREA_RANGES).index(area)
    num_gt = matches.num_gt[row]
    counted = matches.true_positives[row] & (matches.ranks < max_detections)
    found = np.stack(
        [np.bincount(matches.categories[kept], minlength=len(num_gt)) for kept in counted]
    )
    with np.errstate(invalid="ignore"):
        return found / num_gt  # 0 / 0 is NaN


@dataclass(frozen=True)
class OptimalLRP:
    """oLRP and its components at the score threshold where it is reached, (C,) each, in 0..1.

    Attributes:
        error: NaN for categories without ground truth, 1 without true positives.
        localization: mean of 1 - IoU over the true positives; NaN without any.
        false_positives: 1 - precision; NaN without true positives.
        false_negatives: 1 - recall.
        thresholds: the lowest of the best score thresholds; NaN without true positives.
    """

    error: np.ndarray
    localization: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    thresholds: np.ndarray


class LocalizationRecallPrecision:
    """Optimal Localization Recall Precision error at tau = 0.5 (Oksuz et al., ECCV 2018).

    LRP(s) = (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN) of the detections
    with a score of at least s, with s in 0:0.01:1; oLRP is its minimum.
    """

    def __init__(self, matches: Matches):
        num_categories = matches.num_gt.shape[1]
        is_true = matches.true_positives[0, 0]
        self._true = np.flatnonzero(is_true)
        self._false = np.flatnonzero(~is_true & ~matches.ignored[0, 0])
        self._errors = 1 - matches.ious[self._true]
        bounds = np.searchsorted(matches.categories, np.arange(num_categories + 1))
        ends = np.empty((num_categories, len(LRP_THRESHOLDS)), np.int64)
        for category, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            descending = -matches.scores[start:stop]
            ends[category] = start + np.searchsorted(descending, -LRP_THRESHOLDS, side="right")
        # Of the true and of the false positives: how many are before a category and a threshold.
        groups = self._true, self._false
        self._starts = [np.searchsorted(rows, bounds[:-1, None]) for rows in groups]
        self._ends = [np.searchsorted(rows, ends) for rows in groups]

    def optimum(self, weights: np.ndarray, num_gt: np.ndarray) -> OptimalLRP:
        """
        Args:
            weights: (D,) of the detections: of their images, integer values.
            num_gt: (C,) number of ground truths, weighted by their images.
        """
        (true_start, false_start), (true_end, false_end) = self._starts, self._ends
        true = _sums_before(weights[self._true])
        tp = true[true_end] - true[true_start]  # (C, thresholds)
        error = _sums_before(weights[self._true] * self._errors)
        error = error[true_end] - error[true_start]
        false = _sums_before(weights[self._false])
        fp = false[false_end] - false[false_start]
        with np.errstate(invalid="ignore", divide="ignore"):
            fn = num_gt[:, None] - tp
            lrp = (error / (1 - 0.5) + fp + fn) / (tp + fp + fn)
            lrp[num_gt == 0] = np.nan
            best = np.argmin(lrp, axis=1, keepdims=True)
            lrp, tp, error, fp = (
                np.take_along_axis(a, best, 1)[:, 0] for a in (lrp, tp, error, fp)
            )
            # Without ground truth or true positives, 0 / 0 is NaN.
            has_true = np.where(tp > 0, 1, np.nan)
            return OptimalLRP(
                error=lrp,
                localization=error / tp,
                false_positives=has_true * fp / (tp + fp),
                false_negatives=1 - tp / num_gt,
                thresholds=has_true * LRP_THRESHOLDS[best[:, 0]],
            )


def _sums_before(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n + 1,): sums of the values before each place."""
    return np.concatenate([[0], np.cumsum(values)])


def _true_positives_needed(num_gt: np.ndarray) -> np.ndarray:
    """(C,) -> (C, 101): the least count, at least 1, whose recall reaches each recall threshold."""
    num_gt = np.maximum(num_gt, 1)[:, None]
    needed = np.ceil(RECALL_THRESHOLDS * num_gt)
    # The product may be rounded; what counts is the comparison of recalls.
    needed -= (needed - 1) / num_gt >= RECALL_THRESHOLDS
    needed += needed / num_gt < RECALL_THRESHOLDS
    return np.maximum(needed, 1)
