"""Why nothing is found: what one change of the results would find, such as other class ids.

The best-scored boxes of each image are compared with its objects again, under each supposition
about how the results may have been written. One that finds many more objects is named.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from corrdet.coco import Detections, GroundTruth
from corrdet.coco.messages import printable

from .matching import box_ious
from .results import Results

# In percent: above, results are bad rather than in another form.
MAX_AP50 = 5.0
# A supposition explains the results if it finds this share of the objects, and so many times more.
MIN_SHARE, MIN_GAIN = 0.25, 4.0
MAX_IMAGES = 500
# A supposition that changes less goes first where another finds hardly more.
MARGIN = 0.1
# Sides that images are resized to for a network.
NETWORK_SIDES = (300, 320, 416, 512, 608, 640, 768, 800, 896, 1024, 1280)
SCALES = 1.08 ** np.arange(-32, 33)


def explain(results: Results) -> str | None:
    """A sentence on the likely cause of an AP50 near 0; None where it is none or nothing explains.

    Args:
        results: of a detector, with boxes or masks.
    """
    ap50 = results.measures["AP50"]
    if not len(results.detections.scores) or not (ap50 < MAX_AP50):
        return None
    sample = _Sample(results.ground_truth, results.detections)
    if not sample.num_objects:
        return None
    as_it_is = sample.share(sample.boxes, any_class=False)
    best = max(MIN_SHARE, MIN_GAIN * as_it_is)
    chosen = None
    for supposition, any_class in _suppositions(sample):
        share = sample.share(supposition.boxes, any_class=any_class)
        if share > best + (MARGIN if chosen else 0):
            best, chosen = share, (supposition, any_class)
    if chosen is None:
        return (
            f"AP50 is {ap50:.2f}: at no scale and in no form that was tried do the best boxes fit "
            "the objects of their images. Are these results of other images, or of an untrained "
            "detector?"
        )
    supposition, any_class = chosen
    causes, remedies = [supposition.cause], [supposition.remedy]
    if any_class:
        cause, remedy = _of_classes(sample, supposition.boxes)
        causes.append(cause)
        remedies.append(remedy)
    cause, remedy = (" and ".join(filter(None, texts)) for texts in (causes, remedies))
    return (
        f"AP50 is {ap50:.2f}. Likely cause: {cause}. {remedy[0].upper()}{remedy[1:]}, "
        f"{100 * best:.0f} % of the objects are found."
    )


class _Sample:
    """The best detections and the objects of some images, and all pairs in the same image."""

    def __init__(self, gt: GroundTruth, detections: Detections):
        is_object = ~gt.is_crowd & (gt.boxes[:, 2:] > 0).all(axis=1)
        with_both = np.intersect1d(gt.images[is_object], detections.images)
        self.has_common_images = len(with_both) > 0
        chosen = with_both[:: max(1, len(with_both) // MAX_IMAGES)]
        objects = np.flatnonzero(is_object & np.isin(gt.images, chosen))
        self.num_objects = len(objects)
        counts = np.bincount(gt.images[objects], minlength=len(gt.image_ids))
        rows = np.flatnonzero(np.isin(detections.images, chosen))
        rows = rows[np.lexsort((-detections.scores[rows], detections.images[rows]))]
        images = detections.images[rows]
        rank = np.arange(len(rows)) - np.searchsorted(images, images)
        rows = rows[rank < 2 * counts[images] + 1]
        order = np.argsort(gt.images[objects], kind="stable")
        objects = objects[order]
        starts = np.searchsorted(gt.images[objects], detections.images[rows])
        numbers = counts[detections.images[rows]]
        self._pair_dt = np.repeat(np.arange(len(rows)), numbers)
        first = np.cumsum(numbers) - numbers
        offsets = np.arange(len(self._pair_dt)) - np.repeat(first, numbers)
        self._pair_gt = np.repeat(starts, numbers) + offsets
        self.boxes = detections.boxes[rows]
        self.sizes = gt.sizes[detections.images[rows]].astype(np.float64)
        self.ground_truth = gt
        self._classes, self._gt_classes = detections.categories[rows], gt.categories[objects]
        self._gt_boxes = gt.boxes[objects]
        self._is_same = self._classes[self._pair_dt] == self._gt_classes[self._pair_gt]

    def found(self, boxes: np.ndarray) -> np.ndarray:
        """(pairs,) whether the box fits the object, whatever their classes."""
        pairs = boxes[self._pair_dt], self._gt_boxes[self._pair_gt]
        with np.errstate(invalid="ignore"):
            return box_ious(*pairs, np.zeros(len(self._pair_dt), bool)) >= 0.5

    def share(self, boxes: np.ndarray, *, any_class: bool) -> float:
        """Share of the objects that a box fits."""
        found = self.found(boxes)
        if not any_class:
            found = found & self._is_same
        return len(np.unique(self._pair_gt[found])) / max(self.num_objects, 1)

    def class_pairs(self, boxes: np.ndarray) -> Counter:
        """How often a box of one class fits an object of another: (detected, annotated) rows."""
        found = self.found(boxes)
        return Counter(
            zip(
                self._classes[self._pair_dt[found]].tolist(),
                self._gt_classes[self._pair_gt[found]].tolist(),
                strict=True,
            )
        )


@dataclass(frozen=True)
class _Supposition:
    """How boxes may have been written, what would mend it, and the boxes then."""

    cause: str
    remedy: str
    boxes: np.ndarray


def _suppositions(sample: _Sample) -> Iterator[tuple[_Supposition, bool]]:
    """With whether classes are left aside; those that change least first."""
    others = list(_boxes(sample))
    for supposition in others:
        yield supposition, False
    for supposition in [_Supposition("", "", sample.boxes), *others]:
        yield supposition, True


def _boxes(sample: _Sample) -> Iterator[_Supposition]:
    boxes, sizes = sample.boxes, sample.sizes
    x, y, width, height = boxes.T
    corners = np.stack([x, y, width - x, height - y], axis=1)
    centers = np.stack([x - width / 2, y - height / 2, width, height], axis=1)
    if np.mean((np.abs(boxes) <= 1.001).all(axis=1)) > 0.5:
        scale = np.tile(sizes, 2)
        cause, remedy = "the boxes are within 0..1", "multiplied by width and height of their image"
        yield _Supposition(cause, remedy, boxes * scale)
        yield _Supposition(cause, f"{remedy}, x and y as their center", centers * scale)
        yield _Supposition(cause, f"{remedy}, as x1, y1, x2, y2", corners * scale)
        return
    yield _Supposition(
        "the boxes are x1, y1, x2, y2 in place of x, y, width, height",
        "with --format xyxy",
        corners,
    )
    yield _Supposition(
        "x and y of the boxes are their centers", "with x and y of their corners", centers
    )
    remedy = "at the scale of the annotated images"
    for side in NETWORK_SIDES if sizes.all() else ():
        ratio = (sizes.max(axis=1) / side)[:, None]
        cause = "the boxes are those of images whose longer side was resized to"
        yield _Supposition(f"{cause} {side}", remedy, boxes * ratio)
        padding = np.zeros_like(boxes)
        padding[:, :2] = (side - sizes / ratio) / 2
        cause = f"the boxes are those of images resized and padded to {side} x {side}"
        yield _Supposition(cause, remedy, (boxes - padding) * ratio)
        cause = f"the boxes are those of images resized to {side} x {side}"
        yield _Supposition(cause, remedy, boxes * np.tile(sizes / side, 2))
    scales = SCALES[np.abs(np.log(SCALES)) > 0.1]
    shares = np.array([sample.share(boxes * scale, any_class=True) for scale in scales])
    # Of those that find nearly as many, the one in the middle.
    middle = float(np.exp(np.log(scales[shares >= 0.9 * shares.max()]).mean()))
    cause = f"the boxes are those of images about {1 / middle:.1f} times as large"
    yield _Supposition(cause, remedy, boxes * middle)


def _of_classes(sample: _Sample, boxes: np.ndarray) -> tuple[str, str]:
    """Cause and remedy where boxes fit objects of other classes."""
    pairs = sample.class_pairs(boxes)
    ids, names = sample.ground_truth.category_ids, sample.ground_truth.category_names
    shifts: Counter = Counter()
    for (found, annotated), count in pairs.items():
        if isinstance(ids[found], int) and isinstance(ids[annotated], int):
            shifts[ids[annotated] - ids[found]] += count
    shift, count = shifts.most_common(1)[0] if shifts else (0, 0)
    is_shifted = shift and count > 0.6 * pairs.total()
    if is_shifted:
        pairs = Counter({p: n for p, n in pairs.items() if ids[p[1]] - ids[p[0]] == shift})
    (found, annotated), _ = pairs.most_common(1)[0]
    fits = (
        f"boxes of class {printable(f'{ids[found]} ({names[found]})')} fit objects of class "
        f"{printable(f'{ids[annotated]} ({names[annotated]})')}"
    )
    if is_shifted:
        more = "larger" if shift > 0 else "smaller"
        return f"class ids are shifted by {abs(shift)}: {fits}", f"with ids {abs(shift)} {more}"
    return f"class ids are others than those of the ground truth: {fits}", "whatever their classes"
