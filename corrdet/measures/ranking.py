"""Measures of a ranking that is matched with ground truth: AP with its bounds, AR, and oLRP.

Every measure is a function of weights of the images. With the weight 1 for all it is the measure
itself, to pycocotools' last bit; with the counts of images drawn with replacement it is the
measure of that sample, so that a bootstrap sorts and matches nothing again.
"""

from dataclasses import dataclass

import numpy as np

from .matching import AREA_RANGES, Matches

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # as in pycocotools.cocoeval.Params
# What oLRP is a minimum over: every detection's score, or 0:0.01:1.
LRP_THRESHOLDS = ("scores", "grid")
# Rounded to the nearest number for each, so that a score of 0.35 reaches the threshold 0.35.
_GRID = np.arange(101) / 100


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
        threshold, self._places = _where(true_positives)
        true_categories = categories[self._places]
        self._starts = starts[true_categories]
        # One segment for a threshold and a category, in that order.
        self._segments = threshold * num_categories + true_categories
        self._bounds = np.searchsorted(
            self._segments, np.arange(len(true_positives) * num_categories + 1)
        )
        ignored_threshold, self._ignored = _where(ignored)
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

        needed = true_positives_needed(num_gt, RECALL_THRESHOLDS)  # (C, 101)
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
        thresholds: the score of the last detection that is kept, or, of the grid, the lowest of the
            best thresholds; NaN without true positives.
    """

    error: np.ndarray
    localization: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    thresholds: np.ndarray


class LocalizationRecallPrecision:
    """Optimal Localization Recall Precision error at tau = 0.5 (Oksuz et al. 2018, 2020).

    LRP = (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN) of the best detections
    of a category; oLRP is its minimum over how many these are. In the authors' code since 2020 they
    are the first k, for every k; in their paper of 2018 those with a score of at least s, with s in
    0:0.01:1, which gives larger values.
    """

    def __init__(self, matches: Matches, thresholds: str = "scores"):
        """
        Args:
            matches: of the detections.
            thresholds: "scores", every k; or "grid", of 2018.

        Raises:
            ValueError: other thresholds.
        """
        if not (isinstance(thresholds, str) and thresholds in LRP_THRESHOLDS):
            raise ValueError(f"lrp_thresholds must be one of {LRP_THRESHOLDS}, got {thresholds!r}")
        num_categories = matches.num_gt.shape[1]
        is_true = matches.true_positives[0, 0]
        self._true = np.flatnonzero(is_true)
        self._false = np.flatnonzero(~is_true & ~matches.ignored[0, 0])
        self._errors = 1 - matches.ious[self._true]
        bounds = np.searchsorted(matches.categories, np.arange(num_categories + 1))
        # Operating points: the category of each, and before which detection it ends. After another
        # true positive LRP is never larger, and after a false one never smaller: of every k those
        # that end with a true positive will do.
        if thresholds == "scores":
            self._categories, ends = matches.categories[self._true], self._true + 1
            self._thresholds = matches.scores[self._true]
        else:
            self._categories = np.repeat(np.arange(num_categories), len(_GRID))
            self._thresholds = np.tile(_GRID, num_categories)
            ends = np.concatenate(
                [
                    start + np.searchsorted(-matches.scores[start:stop], -_GRID, side="right")
                    for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
                ]
            )
        # Of the true and of the false positives: how many are before a category and a point.
        groups = self._true, self._false
        starts = bounds[:-1][self._categories]
        self._starts = [np.searchsorted(rows, starts) for rows in groups]
        self._ends = [np.searchsorted(rows, ends) for rows in groups]
        self._points = np.searchsorted(self._categories, np.arange(num_categories + 1))

    def optimum(self, weights: np.ndarray, num_gt: np.ndarray) -> OptimalLRP:
        """
        Args:
            weights: (D,) of the detections: of their images, integer values.
            num_gt: (C,) number of ground truths, weighted by their images.
        """
        (true_start, false_start), (true_end, false_end) = self._starts, self._ends
        true = _sums_before(weights[self._true])
        tp = true[true_end] - true[true_start]  # (points,)
        error = _sums_before(weights[self._true] * self._errors)
        error = error[true_end] - error[true_start]
        false = _sums_before(weights[self._false])
        fp = false[false_end] - false[false_start]
        with np.errstate(invalid="ignore", divide="ignore"):
            fn = num_gt[self._categories] - tp
            lrp = (error / (1 - 0.5) + fp + fn) / (tp + fp + fn)
            best = self._first_lowest(lrp)
            # Without operating points nothing is found.
            found = best >= 0
            lrp, tp, error, fp, threshold = (
                np.where(found, np.append(values, 0)[best], otherwise)
                for values, otherwise in (
                    (lrp, 1.0), (tp, 0), (error, 0), (fp, 0), (self._thresholds, 0)
                )
            )  # fmt: skip
            # Without ground truth or true positives, 0 / 0 is NaN.
            has_true = np.where(tp > 0, 1, np.nan)
            return OptimalLRP(
                error=np.where(num_gt == 0, np.nan, lrp),
                localization=error / tp,
                false_positives=has_true * fp / (tp + fp),
                false_negatives=1 - tp / num_gt,
                thresholds=has_true * threshold,
            )

    def _first_lowest(self, lrp: np.ndarray) -> np.ndarray:
        """(C,) the first point of each category with its lowest value; -1 where it has none."""
        best = np.full(len(self._points) - 1, -1)
        filled = np.flatnonzero(np.diff(self._points))
        if not len(filled):
            return best
        lrp = np.where(np.isnan(lrp), np.inf, lrp)
        lowest = np.full(len(best), np.inf)
        lowest[filled] = np.minimum.reduceat(lrp, self._points[filled])
        is_lowest = np.flatnonzero(lrp == lowest[self._categories])
        categories, first = np.unique(self._categories[is_lowest], return_index=True)
        best[categories] = is_lowest[first]
        return best


def _where(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is true; in two dimensions numpy's own takes four times as long."""
    rows, columns = np.divmod(np.flatnonzero(flags), flags.shape[1] or 1)
    return rows, columns


def _sums_before(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n + 1,): sums of the values before each place."""
    return np.concatenate([[0], np.cumsum(values)])


def true_positives_needed(num_gt: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """(C,) -> (C, 101): the least count, at least 1, whose recall reaches each recall threshold."""
    num_gt = np.maximum(num_gt, 1)[:, None]
    needed = np.ceil(recalls * num_gt)
    # The product may be rounded; what counts is the comparison of recalls.
    needed -= (needed - 1) / num_gt >= recalls
    needed += needed / num_gt < recalls
    return np.maximum(needed, 1)
