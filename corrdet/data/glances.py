"""Which annotations need no second look, told of thousands at once.

:mod:`.checks` looks at one annotation and says what is wrong with it. For a million that takes a
minute, and nearly all are good; what is good beyond doubt is found here in arrays.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode

from corrdet.coco.checking import have_no_problem

# That are looked at together: an odd annotation has all of them looked at one by one.
IMAGES = 2000
_NUMBERS = {int, float}


@dataclass
class Glance:
    """The n annotations of some images.

    Attributes:
        are_good: (n,) bool, whether nothing is wrong with class, box and mask.
        are_in_first_pixel: (n,) bool, whether a box lies in the first pixel of a larger image.
        counted: how many are of images of more than a pixel.
    """

    are_good: np.ndarray
    are_in_first_pixel: np.ndarray
    counted: int

    def good(self, shares: bool) -> list[bool]:
        """``shares``: what lies in the first pixel is not good, as boxes are taken for shares."""
        return (self.are_good & ~(shares & self.are_in_first_pixel)).tolist()


def look_at(
    dataset_dicts: Sequence[dict],
    num_classes: int | None,
    is_in_first_pixel: Callable[[dict], bool],
    *,
    check_masks: bool,
) -> Iterator[Glance]:
    """A glance at every ``IMAGES`` images, in order.

    Args:
        dataset_dicts: in Detectron2's format.
        num_classes: that there are; None for any number.
        is_in_first_pixel: tells it of one annotation, whatever it is.
        check_masks: whether each object must have a mask.
    """
    for start in range(0, len(dataset_dicts), IMAGES):
        records = [r for r in dataset_dicts[start : start + IMAGES] if r.get("annotations")]
        try:
            yield _quick(records, num_classes, check_masks)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            yield _slow(records, is_in_first_pixel)


def _slow(records: Sequence[dict], is_in_first_pixel: Callable[[dict], bool]) -> Glance:
    inside, counted = [], 0
    for record in records:
        is_large = min(record.get("width") or 0, record.get("height") or 0) > 1
        inside += [is_large and is_in_first_pixel(a) for a in record["annotations"]]
        counted += is_large * len(record["annotations"])
    return Glance(np.zeros(len(inside), dtype=bool), np.array(inside, dtype=bool), counted)


def _quick(records: Sequence[dict], num_classes: int | None, check_masks: bool) -> Glance:
    """
    Raises:
        Exception: of some types, where something is not as it usually is.
    """
    annotations = [a for record in records for a in record["annotations"]]
    if not annotations:
        return Glance(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 0)
    boxes = [a["bbox"] for a in annotations]
    modes = [a["bbox_mode"] for a in annotations]
    classes = [a["category_id"] for a in annotations]
    sizes = [(r["width"], r["height"]) for r in records for _ in r["annotations"]]
    if not (
        set(map(type, boxes)) <= {list, tuple}
        and set(map(len, boxes)) == {4}
        and set(map(type, itertools.chain.from_iterable(boxes))) <= _NUMBERS
        and set(map(type, itertools.chain.from_iterable(sizes))) <= _NUMBERS
        and set(map(type, classes)) == {int}
        and modes == [modes[0]] * len(modes)
        and modes[0] in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    ):
        raise ValueError
    low, high = np.split(np.array(boxes, dtype=np.float64), 2, axis=1)
    images = np.array(sizes, dtype=np.float64)
    if modes[0] == BoxMode.XYWH_ABS:
        high = low + high
    numbers = np.array(classes)
    # NaN is neither above nor below.
    is_box = (high > low).all(axis=1)
    are_good = is_box & (low >= 0).all(axis=1) & (high <= images).all(axis=1) & (numbers >= 0)
    if num_classes is not None:
        are_good &= numbers < num_classes
    if check_masks:
        masks = [a.get("segmentation") for a in annotations]
        are_crowds = np.array([bool(a.get("iscrowd", 0)) for a in annotations])
        are_good &= are_crowds | have_no_problem(masks, sizes)
    is_large = images.min(axis=1) > 1
    in_first = is_large & is_box & (low >= 0).all(axis=1) & (high <= 1).all(axis=1)
    return Glance(are_good, in_first, int(is_large.sum()))
