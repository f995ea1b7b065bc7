"""Confidence intervals of measures, by drawing images with replacement (Efron, 1979).

Every sample weighs the images by how often they were drawn; rankings, matches and the images drawn
are the same for all results files, so differences between files are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from .matching import AREA_RANGES
from .ranking import LocalizationRecallPrecision, PrecisionCurves
from .results import (
    AT_THRESHOLDS,
    MIN_CORRELATION_IOU,
    Results,
    frequency_groups,
    mean_of_defined,
    threshold_row,
)


@dataclass(frozen=True)
class Bootstrap:
    """Measures of B samples of the images, for F results files.

    An interval is the spread of the samples about their mean, laid around the measure. The samples
    themselves lie a little higher in AP and lower in oLRP, as images that are drawn twice repeat
    their objects: at the size of COCO by as much as half of the interval.

    Attributes:
        seed: of the draws.
        values: name -> (F,) of all images, in percent.
        samples: name -> (F, B), in percent; NaN where a measure is not defined for a sample.
    """

    seed: int
    values: dict[str, np.ndarray]
    samples: dict[str, np.ndarray] = field(repr=False)

    def interval(self, name: str, file: int, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a measure of a file; NaN where it is not defined."""
        return _interval(self.values[name][file], self.samples[name][file], confidence)

    def difference(
        self, name: str, file: int, other: int = 0, confidence: float = 0.95
    ) -> tuple[float, float]:
        """Confidence interval of what a file has more than another, on the same images."""
        values, samples = self.values[name], self.samples[name]
        return _interval(values[file] - values[other], samples[file] - samples[other], confidence)


def bootstrap(
    results: Sequence[Results], samples: int = 1000, seed: int = 0, *, progress: bool = False
) -> Bootstrap:
    """Draw the images with replacement, as many as there are, and measure each sample.

    Categories without ground truth in a sample are left out of its means. Not sampled are the
    measures that would need a new sort for each sample: AP by area, bounds, KCC.

    Args:
        results: of the same ground truth, F files.
        samples: B.
        seed: of the draws.
        progress: show a progress bar.

    Raises:
        ValueError: no results, fewer than one sample, or results of different images.
    """
    if not results or samples < 1:
        raise ValueError(
            f"expected results and at least 1 sample, got {len(results)} results and {samples}"
        )
    image_ids = results[0].ground_truth.image_ids
    if any(other.ground_truth.image_ids != image_ids for other in results[1:]):
        raise ValueError("expected results of the same images, got results of different ones")
    rng = np.random.default_rng(seed)
    image_samples = [ImageSample(result) for result in results]
    drawn = []
    for _ in tqdm(range(samples), desc="bootstrap", unit="sample", disable=not progress):
        counts = np.bincount(
            rng.integers(len(image_ids), size=len(image_ids)), minlength=len(image_ids)
        ).astype(np.float64)
        drawn.append([image_sample.measures(counts) for image_sample in image_samples])
    names = drawn[0][0]
    return Bootstrap(
        seed=seed,
        values={name: np.array([result.measures[name] for result in results]) for name in names},
        samples={
            name: np.array(
                [[sample[file][name] for sample in drawn] for file in range(len(results))]
            )
            for name in names
        },
    )


class ImageSample:
    """Measures of a results file for any counts of its images."""

    def __init__(self, results: Results):
        matches, gt = results.matches, results.ground_truth
        self._num_categories = len(gt.category_ids)
        self._frequency_groups = frequency_groups(gt)
        self._images = matches.images
        low, high = AREA_RANGES["all"]
        is_counted = ~gt.is_crowd & (gt.areas >= low) & (gt.areas <= high)
        self._gt_images, self._gt_categories = gt.images[is_counted], gt.categories[is_counted]
        is_true, ignored = matches.true_positives[0], matches.ignored[0]
        self._curves = PrecisionCurves(matches.categories, is_true, ignored, self._num_categories)
        self._lrp = LocalizationRecallPrecision(matches, results.lrp_thresholds)
        self._true = np.flatnonzero(is_true[0])
        self._by_class = GroupCorrelation(
            matches.scores[self._true],
            matches.ious[self._true],
            matches.categories[self._true],
            self._num_categories,
        )
        self._near = np.flatnonzero(matches.best_ious > MIN_CORRELATION_IOU)
        self._overall = GroupCorrelation(
            matches.scores[self._near],
            matches.best_ious[self._near],
            np.zeros(len(self._near), np.int64),
            1,
        )

    def measures(self, counts: np.ndarray) -> dict[str, float]:
        """
        Args:
            counts: (I,) how often each image is in the sample.

        Returns:
            name -> value in percent, of the names of ``Results.measures``.
        """
        weights = counts[self._images]
        num_gt = np.bincount(
            self._gt_categories, counts[self._gt_images], minlength=self._num_categories
        )
        precision = self._curves.precision(weights, num_gt).mean(axis=2)  # (T, C)
        lrp = self._lrp.optimum(weights, num_gt)
        near = weights[self._near]
        ap = precision.mean(axis=0)
        values = {
            "AP": ap,
            **{key: ap[is_of] for key, is_of in self._frequency_groups.items()},
            **{f"AP{percent}": precision[threshold_row(percent)] for percent in AT_THRESHOLDS},
            "oLRP": lrp.error,
            "oLRP_Loc": lrp.localization,
            "oLRP_FP": lrp.false_positives,
            "oLRP_FN": lrp.false_negatives,
            "beta_cls": self._by_class.spearman(weights[self._true]),
            "PCC": self._overall.pearson(near),
            "SCC": self._overall.spearman(near),
        }
        return {name: 100 * mean_of_defined(value) for name, value in values.items()}


class GroupCorrelation:
    """Correlations of weighted pairs within groups; sorts once, not for each sample."""

    def __init__(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray, num_groups: int):
        """
        Args:
            x: (n,).
            y: (n,).
            groups: (n,) in 0..num_groups-1.
            num_groups: how many.
        """
        self._values = x, y
        self._groups, self._num_groups = groups, num_groups
        self._ties = []
        for values in (x, y):
            order = np.lexsort((values, groups))
            changes = (np.diff(values[order]) != 0) | (np.diff(groups[order]) != 0)
            firsts = np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), bool), changes]))
            group_starts = np.searchsorted(groups[order[firsts]], groups[order[firsts]])
            self._ties.append((order, firsts, group_starts))

    def pearson(self, weights: np.ndarray) -> np.ndarray:
        """(n,) weights -> (groups,) coefficients, NaN where a value is the same for all pairs."""
        return self._correlation(*self._values, weights)

    def spearman(self, weights: np.ndarray) -> np.ndarray:
        """Pearson's coefficient of the ranks that the pairs have, repeated ``weights`` times."""
        x, y = (self._ranks(ties, weights) for ties in self._ties)
        return self._correlation(x, y, weights)

    def _ranks(self, ties, weights: np.ndarray) -> np.ndarray:
        """Average ranks within the groups, ties included."""
        order, firsts, group_starts = ties
        if not len(order):
            return np.zeros(0)
        counts = np.add.reduceat(weights[order], firsts)
        before = np.cumsum(counts) - counts
        tied_ranks = before - before[group_starts] + (counts + 1) / 2
        ranks = np.empty(len(order))
        ranks[order] = np.repeat(tied_ranks, np.diff(firsts, append=len(order)))
        return ranks

    def _correlation(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total = self._sum(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            x = x - (self._sum(weights * x) / total)[self._groups]
            y = y - (self._sum(weights * y) / total)[self._groups]
            weighted_x = weights * x
            xx, yy = self._sum(weighted_x * x), self._sum(weights * y * y)
            rho = self._sum(weighted_x * y) / np.sqrt(xx * yy)
        # What rounding leaves of the variance of equal values.
        return np.where((xx > 1e-24 * total) & (yy > 1e-24 * total), rho, np.nan)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        if self._num_groups == 1:
            return np.array([values.sum()])
        return np.bincount(self._groups, values, minlength=self._num_groups)


def _interval(value: float, samples: np.ndarray, confidence: float) -> tuple[float, float]:
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    shift = value - samples.mean()
    return float(low + shift), float(high + shift)
