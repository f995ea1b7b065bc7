"""Which classes are taken for which: detections matched with objects whatever their classes."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .matching import PairIous
from .operating import operating_points
from .results import Results

MIN_IOU = 0.5


@dataclass(frozen=True)
class Confusion:
    """Counts of detections with a score of at least a threshold.

    Attributes:
        threshold: of the score.
        counts: (annotated, detected) -> number, of places among C categories; C stands for
            background that is detected, and for objects that are missed. What is 0 is not there:
            of 20 000 classes a matrix would have gigabytes.
        num_categories: C.
    """

    threshold: float
    counts: dict[tuple[int, int], int] = field(repr=False)
    num_categories: int

    def total(self, kind: str) -> int:
        """How many are "right", "confused", of "background" or "missed"."""
        none = self.num_categories
        kinds = {"right": 0, "confused": 0, "background": 0, "missed": 0}
        for (annotated, detected), count in self.counts.items():
            if annotated == none:
                kinds["background"] += count
            elif detected == none:
                kinds["missed"] += count
            else:
                kinds["right" if annotated == detected else "confused"] += count
        return kinds[kind]

    def pairs(self) -> list[tuple[int, int, int]]:
        """(annotated, detected, count) of two classes, the most frequent first."""
        found = [
            (annotated, detected, count)
            for (annotated, detected), count in sorted(self.counts.items())
            if annotated != detected and self.num_categories not in (annotated, detected)
        ]
        return sorted(found, key=lambda pair: -pair[2])


def confusion(results: Results, threshold: float | None = None) -> Confusion:
    """Match detections with objects of any class, best score first, at an IoU of at least 0.5.

    Crowds are no objects, and what lies in one of its class is no detection.

    Args:
        results: of a detector.
        threshold: of the score; that of the best F1 over all classes if not given.
    """
    if threshold is None:
        best = operating_points(results).best_f1
        threshold = best.threshold if best else 0.0
    matches, gt = results.matches, results.ground_truth
    num = len(gt.category_ids)
    counts: Counter[tuple[int, int]] = Counter()
    kept = np.flatnonzero((matches.scores >= threshold) & ~matches.ignored[0, 0])
    kept = kept[np.lexsort((-matches.scores[kept], matches.images[kept]))]
    images = matches.images[kept]
    objects = np.flatnonzero(~gt.is_crowd)
    objects = objects[np.argsort(gt.images[objects], kind="stable")]
    gt_images = gt.images[objects]
    pairs = PairIous(gt, results.detections)
    taken = np.zeros(len(gt.ids), bool)
    for image in np.unique(images).tolist():
        rows = kept[slice(*np.searchsorted(images, [image, image + 1]))]
        columns = objects[slice(*np.searchsorted(gt_images, [image, image + 1]))]
        ious = pairs.matrix(matches.detections[rows], columns, crowd=False)
        # Of equal IoUs the object of the same class.
        is_same = matches.categories[rows][:, None] == gt.categories[columns]
        for place, row in enumerate(rows):
            free = np.flatnonzero((ious[place] >= MIN_IOU) & ~taken[columns])
            annotated = num
            if len(free):
                best = free[np.lexsort((is_same[place, free], ious[place, free]))[-1]]
                taken[columns[best]] = True
                annotated = int(gt.categories[columns[best]])
            counts[annotated, int(matches.categories[row])] += 1
    missed = objects[~taken[objects]]
    counts.update((category, num) for category in gt.categories[missed].tolist())
    return Confusion(float(threshold), dict(counts), num)
