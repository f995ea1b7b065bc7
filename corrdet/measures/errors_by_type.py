"""Errors by type and what each costs in AP50 (TIDE, Bolya et al., ECCV 2020).

Of the 100 best detections of an image, over all classes, each that finds nothing at an IoU of 0.5
is one of

- Cls: fits an object of another class;
- Loc: overlaps an object of its class by 0.1 to 0.5;
- Both: overlaps an object of another class by 0.1 to 0.5, and none of its own;
- Dupe: fits an object that a better scored detection has found;
- Bkg: overlaps no object by more than 0.1;

and an object that is not found, and that no Cls or Loc could have found, is Miss. What a type costs
is the AP50 with its errors mended, less the AP50: Cls and Loc become true where they are the best
for a free object and vanish otherwise, Both, Dupe and Bkg vanish, missed objects do not count. FP
has all false positives behind all true ones, FN no object that is not found.

As in the authors' code, classes without objects that have detections count as an AP of 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from corrdet.coco import Detections, GroundTruth

from .matching import PairIous
from .ranking import true_positives_needed

TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
SPECIAL = ("FP", "FN")
POSITIVE_IOU, BACKGROUND_IOU = 0.5, 0.1
MAX_DETECTIONS = 100
# As the authors' code has them; COCO's differ in their last bits, which decides at equal recalls.
RECALLS = np.arange(101) / 100
# Of a detection, beside the places in TYPES.
CORRECT = 6


@dataclass(frozen=True)
class Errors:
    """The E detections that TIDE looks at, and what each is; G objects.

    Attributes:
        detections: (E,) rows of ``Detections``.
        types: (E,) places in TYPES, or CORRECT.
        ignored: (E,) whether it lies in a crowd, so that it is no error unless it is mended.
        objects: (E,) row of ``GroundTruth`` that it is about; -1 for Bkg without any object.
        mended: (E,) whether the error, of type Cls or Loc, would become a true positive.
        missed: (G,) whether an object is Miss.
        found: (G,) whether it is found. Crowds are neither.
        counts: name -> number, of each type.
        cost: name -> AP50 in percent with these errors mended, less the AP50; FP and FN as well.
    """

    detections: np.ndarray = field(repr=False)
    types: np.ndarray = field(repr=False)
    ignored: np.ndarray = field(repr=False)
    objects: np.ndarray = field(repr=False)
    mended: np.ndarray = field(repr=False)
    missed: np.ndarray = field(repr=False)
    found: np.ndarray = field(repr=False)
    counts: dict[str, int]
    cost: dict[str, float]


def errors_by_type(ground_truth: GroundTruth, detections: Detections) -> Errors:
    """What each detection is wrong about, and what that costs.

    Args:
        ground_truth: G objects.
        detections: N detections; masks are compared where both have masks.
    """
    gt = ground_truth
    order = np.lexsort((-detections.scores, detections.images))
    images = detections.images[order]
    order = order[np.arange(len(order)) - np.searchsorted(images, images) < MAX_DETECTIONS]
    is_object = ~gt.is_crowd
    types = np.full(len(order), TYPES.index("Bkg"))
    objects, ignored = np.full(len(order), -1), np.zeros(len(order), bool)
    found, usable = np.zeros(len(gt.ids), bool), np.zeros(len(gt.ids), bool)
    best: dict[int, int] = {}
    for rows, columns, crowds, ious, in_crowd in _images(gt, detections, order):
        _judge(
            _Image(rows, columns, crowds, ious, in_crowd),
            detections.categories[order[rows]],
            gt.categories,
            types,
            ignored,
            objects,
            found,
        )
    is_free = (objects >= 0) & ~found[objects]
    could = np.isin(types, (TYPES.index("Cls"), TYPES.index("Loc"))) & is_free
    usable[objects[could]] = True
    for row in np.flatnonzero(could).tolist():
        other = best.setdefault(int(objects[row]), row)
        if detections.scores[order[row]] > detections.scores[order[other]]:
            best[int(objects[row])] = row
    mended = np.zeros(len(order), bool)
    mended[list(best.values())] = True
    missed = is_object & ~found & ~usable
    counts = {name: int(((types == place) & ~ignored).sum()) for place, name in enumerate(TYPES)}
    counts["Miss"] = int(missed.sum())
    counts |= {"FP": sum(counts[name] for name in TYPES[:5]), "FN": int((is_object & ~found).sum())}
    errors = Errors(order, types, ignored, objects, mended, missed, found, counts, {})
    costs = CostOfErrors(gt, detections, errors)
    errors.cost.update(costs.costs(np.ones(len(gt.image_ids))))
    return errors


@dataclass(frozen=True)
class _Image:
    """An image: places of its detections, best first, rows of its objects, and their IoUs."""

    rows: np.ndarray
    columns: np.ndarray
    crowds: np.ndarray
    ious: np.ndarray
    in_crowd: np.ndarray


def _images(gt: GroundTruth, detections: Detections, order: np.ndarray) -> Iterator:
    """Of each image with detections: places in ``order``, rows of objects and crowds, IoUs."""
    pairs = PairIous(gt, detections)
    by_image = np.argsort(gt.images, kind="stable")
    gt_images = gt.images[by_image]
    images = detections.images[order]
    for image in np.unique(images).tolist():
        rows = np.arange(*np.searchsorted(images, [image, image + 1]))
        own = by_image[slice(*np.searchsorted(gt_images, [image, image + 1]))]
        columns, crowds = own[~gt.is_crowd[own]], own[gt.is_crowd[own]]
        yield (
            rows,
            columns,
            crowds,
            pairs.matrix(order[rows], columns, crowd=False),
            pairs.matrix(order[rows], crowds, crowd=True),
        )


def _judge(
    image: _Image,
    categories: np.ndarray,
    gt_categories: np.ndarray,
    types: np.ndarray,
    ignored: np.ndarray,
    objects: np.ndarray,
    found: np.ndarray,
) -> None:
    """Fill in types and objects of an image's detections, and which objects are found."""
    rows, columns, ious = image.rows, image.columns, image.ious
    is_same = categories[:, None] == gt_categories[columns]
    own = ious * is_same
    free = own.copy()
    near = np.flatnonzero(own.max(axis=1) >= POSITIVE_IOU) if len(columns) else ()
    for place in near:
        column = int(free[place].argmax())
        if free[place, column] >= POSITIVE_IOU:
            types[rows[place]], objects[rows[place]] = CORRECT, columns[column]
            found[columns[column]] = True
            free[:, column] = 0
    wrong = np.flatnonzero(types[rows] != CORRECT)
    inside = (
        (image.in_crowd > POSITIVE_IOU) & (categories[:, None] == gt_categories[image.crowds])
    ).any(axis=1)
    ignored[rows[wrong[inside[wrong]]]] = True
    if not len(columns):
        return
    others, any_class = ious * ~is_same, ious
    taken = own * found[columns]
    # The first of these that holds.
    cases = (
        ("Loc", own, lambda iou: (iou >= BACKGROUND_IOU) & (iou <= POSITIVE_IOU)),
        ("Cls", others, lambda iou: iou >= POSITIVE_IOU),
        ("Dupe", taken, lambda iou: iou >= POSITIVE_IOU),
        ("Bkg", any_class, lambda iou: iou <= BACKGROUND_IOU),
        ("Both", any_class, lambda iou: iou > BACKGROUND_IOU),
    )
    for name, matrix, holds in cases:
        column = matrix[wrong].argmax(axis=1)
        is_it = holds(matrix[wrong, column])
        types[rows[wrong[is_it]]] = TYPES.index(name)
        objects[rows[wrong[is_it]]] = columns[column[is_it]]
        wrong = wrong[~is_it]


class CostOfErrors:
    """AP50 with the errors of a type mended, less the AP50, for any counts of the images."""

    def __init__(self, ground_truth: GroundTruth, detections: Detections, errors: Errors):
        """
        Args:
            ground_truth: of the detections.
            detections: N.
            errors: of these.
        """
        gt = self._gt = ground_truth
        num = self._num_categories = len(gt.category_ids)
        self._is_object = ~gt.is_crowd
        self._missed, self._found = errors.missed, errors.found
        images = detections.images[errors.detections]
        scores = detections.scores[errors.detections]
        categories = detections.categories[errors.detections]
        types, is_true = errors.types, errors.types == CORRECT
        in_crowd = errors.ignored
        self._curves = {"": _Curve(images, scores, categories, is_true, ~in_crowd, num)}
        for place, name in enumerate(TYPES[:-1]):
            is_it = types == place
            true, classes, kept = is_true, categories, ~in_crowd & ~is_it
            if name in ("Cls", "Loc"):
                true, kept = is_true | is_it & errors.mended, kept | is_it & errors.mended
            if name == "Cls":
                classes = np.where(is_it & errors.mended, gt.categories[errors.objects], categories)
            self._curves[name] = _Curve(images, scores, classes, true, kept, num)
        # Behind all correct detections, false ones lower nothing; but their classes are there.
        self._curves["FP"] = _Curve(images, scores, categories, is_true, is_true, num)
        self._curves["FP"].presence = self._curves[""].presence

    def costs(self, counts: np.ndarray) -> dict[str, float]:
        """
        Args:
            counts: (I,) how often each image is in the sample.

        Returns:
            name -> cost in percent, of the types and of FP and FN.
        """
        gt = self._gt

        def num_of(rows: np.ndarray) -> np.ndarray:
            return np.bincount(
                gt.categories[rows], counts[gt.images[rows]], minlength=self._num_categories
            )

        num_gt = num_of(self._is_object)
        objects = {
            "": [num_gt, num_gt - num_of(self._missed), num_of(self._found)],
            **{name: [num_gt] for name in self._curves if name},
        }
        found = {
            name: curve.average_precision(counts, objects[name])
            for name, curve in self._curves.items()
        }
        ap, missed, none_missed = found.pop("")
        values = {name: mended - ap for name, (mended,) in found.items()}
        values |= {"Miss": missed - ap, "FN": none_missed - ap}
        # Below 0 by the steps of recall alone.
        return {
            name: max(values[name], 0.0) if name in TYPES else values[name]
            for name in (*TYPES, *SPECIAL)
        }


class _Curve:
    """AP50 of a ranking, the mean over the classes that have objects or detections.

    Of the false positives only those between two true ones are counted, by image: a sample is a
    product of that sparse matrix with the counts of the images.
    """

    def __init__(self, images, scores, categories, is_true, is_kept, num_categories):
        from scipy.sparse import coo_array

        rows = np.flatnonzero(is_kept)
        rows = rows[np.lexsort((-scores[rows], categories[rows]))]
        images, categories, is_true = images[rows], categories[rows], is_true[rows]
        places = np.flatnonzero(is_true)
        self._images, self._classes = images[places], categories[places]
        self._bounds = np.searchsorted(self._classes, np.arange(num_categories + 1))
        false = np.flatnonzero(~is_true)
        before = np.searchsorted(places, false)
        # The next true positive, if it is of the same class: behind the last, nothing is lowered.
        is_before = before < len(places)
        is_before[is_before] = self._classes[before[is_before]] == categories[false[is_before]]
        false, before = false[is_before], before[is_before]
        size = int(images.max(initial=-1)) + 1
        self._size = size
        self._false = coo_array(
            (np.ones(len(false)), (before, images[false])), shape=(len(places), size)
        ).tocsr()
        # Which classes are detected at all.
        self.presence = coo_array(
            (np.ones(len(images)), (categories, images)), shape=(num_categories, size)
        ).tocsr()

    def average_precision(self, counts: np.ndarray, num_gt: Sequence[np.ndarray]) -> list[float]:
        """In percent, for each of several numbers of objects (C,)."""
        true = np.cumsum(counts[self._images])
        false = np.cumsum(self._false @ counts[: self._size])
        starts, false_starts = (np.concatenate([[0], sums])[self._bounds] for sums in (true, false))
        tp = true - starts[self._classes]
        precision = tp / (false - false_starts[self._classes] + tp + np.spacing(1))
        for start, stop in zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True):
            if stop - start > 1:
                segment = precision[start:stop][::-1]
                np.maximum.accumulate(segment, out=segment)
        precision = np.append(precision, 0.0)
        is_detected = self.presence @ counts[: self.presence.shape[1]] > 0
        values = []
        for number in num_gt:
            needed = true_positives_needed(number, RECALLS)
            at = np.searchsorted(true, starts[:-1, None] + needed)
            is_reached = needed <= np.diff(starts)[:, None]
            ap = np.where(is_reached, precision[np.minimum(at, len(true))], 0.0).mean(axis=1)
            is_there = (number > 0) | is_detected
            mean = np.where(number > 0, ap, 0)[is_there].mean() if is_there.any() else np.nan
            values.append(100 * float(mean))
        return values


__all__ = ["MAX_DETECTIONS", "SPECIAL", "TYPES", "CostOfErrors", "Errors", "errors_by_type"]
