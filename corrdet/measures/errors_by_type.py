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

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from corrdet.coco import Detections, GroundTruth

from .matching import PairIous
from .ranking import PrecisionCurves

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
        self._curves["FP"] = _Curve(
            images, is_true.astype(float), categories, is_true, ~in_crowd, num
        )

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
        base = self._curves[""]
        ap = base.average_precision(counts, num_gt)
        values = {}
        for name, curve in self._curves.items():
            if name:
                values[name] = curve.average_precision(counts, num_gt) - ap
        values["Miss"] = base.average_precision(counts, num_gt - num_of(self._missed)) - ap
        values["FN"] = base.average_precision(counts, num_of(self._found)) - ap
        # Below 0 by the steps of recall alone.
        return {
            name: max(values[name], 0.0) if name in TYPES else values[name]
            for name in (*TYPES, *SPECIAL)
        }


class _Curve:
    """AP50 of a ranking, the mean over the classes that have objects or detections."""

    def __init__(self, images, scores, categories, is_true, is_kept, num_categories):
        rows = np.flatnonzero(is_kept)
        rows = rows[np.lexsort((-scores[rows], categories[rows]))]
        self._images, self._categories = images[rows], categories[rows]
        self._num_categories = num_categories
        none = np.zeros((1, len(rows)), bool)
        self._curves = PrecisionCurves(
            self._categories, is_true[rows][None], none, num_categories, RECALLS
        )

    def average_precision(self, counts: np.ndarray, num_gt: np.ndarray) -> float:
        weights = counts[self._images]
        ap = self._curves.precision(weights, num_gt)[0].mean(axis=1)
        num_detections = np.bincount(self._categories, weights, minlength=self._num_categories)
        is_there = (num_gt > 0) | (num_detections > 0)
        if not is_there.any():
            return float("nan")
        return 100 * float(np.where(num_gt > 0, ap, 0)[is_there].mean())


__all__ = ["MAX_DETECTIONS", "SPECIAL", "TYPES", "CostOfErrors", "Errors", "errors_by_type"]
