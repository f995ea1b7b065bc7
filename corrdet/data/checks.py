"""Checks of data sets before training starts.

A box without width, or a class that the model does not have, otherwise shows up hours later as a
NaN or a CUDA assertion that names neither image nor annotation.
"""

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode

from corrdet.coco import AnnotationError, mask_problem
from corrdet.coco.messages import MAX_LISTED, listing, short
from corrdet.coco.rules import OVERHANG_TOLERANCE
from corrdet.names import config_value

from .glances import Glance, look_at
from .image_checks import check_readable, filter_unreadable
from .keypoints import keypoint_problem

logger = logging.getLogger(__name__)

SKIP_ANNOTATIONS_ADVICE = (
    "Correct the annotation file, or leave them out with DATASETS.SKIP_BAD_ANNOTATIONS True."
)

# How many classes the detectors of Detectron2 have. Corrdet's, and others', say it themselves, with
# an attribute num_classes_key; those that do not are not checked.
NUM_CLASSES_KEYS = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def check_dataset(
    name: str,
    dataset_dicts: list[dict],
    *,
    skip_unreadable: bool = False,
    skip_bad_annotations: bool = False,
    check_images: bool = False,
    check_masks: bool = False,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
) -> list[dict]:
    """Check the annotations, and the images if asked, of a data set in Detectron2's format.

    Args:
        name: the data set's name, for messages and for its ``thing_classes``.
        dataset_dicts: as :meth:`DatasetCatalog.get` returns them; not changed.
        skip_unreadable: drop images that cannot be decoded, and log which; reads every image.
        skip_bad_annotations: drop bad annotations instead of raising, keep their images, log how
            many of what kind.
        check_images: decode every image although ``skip_unreadable`` is off, and raise.
        check_masks: every object must have a mask, in its image and not empty; crowd regions, which
            are not trained on, need none.
        num_classes: category ids must be in 0..num_classes-1; the length of ``thing_classes`` if
            not given, unchecked if that is unknown.
        num_keypoints: of an object that has keypoints; None where they are not used.

    Returns:
        The checked list. Boxes that overhang their image by up to 2 pixels are clipped to it.

    Raises:
        AnnotationError: without ``skip_bad_annotations``, for boxes that are not finite, without
            width or height, outside of the image or overhanging it by more than 2 pixels, for
            category ids out of range, for masks and keypoints; names the first ten and counts all.
        ImageReadError: with ``check_images`` and without ``skip_unreadable``.
    """
    if num_classes is None:
        classes = MetadataCatalog.get(name).get("thing_classes")
        num_classes = None if classes is None else len(classes)
    checked = _check_annotations(
        name,
        dataset_dicts,
        num_classes,
        skip_bad=skip_bad_annotations,
        check_masks=check_masks,
        num_keypoints=num_keypoints,
    )
    if skip_unreadable:
        return filter_unreadable(name, checked)
    if check_images:
        check_readable(name, checked)
    return checked


def _check_annotations(
    name: str,
    dataset_dicts: list[dict],
    num_classes: int | None,
    *,
    skip_bad: bool,
    check_masks: bool,
    num_keypoints: int | None,
) -> list[dict]:
    """The list with clipped boxes, and if ``skip_bad`` without bad annotations."""
    checked: list[dict] = []
    problems: list[str] = []
    counts: dict[str, int] = {}
    clipped = 0
    glances = list(look_at(dataset_dicts, num_classes, _is_in_first_pixel, check_masks=check_masks))
    shares = _boxes_are_shares(name, glances)
    are_good = itertools.chain.from_iterable(glance.good(shares) for glance in glances)
    for record in dataset_dicts:
        annotations = record.get("annotations")
        all_good = all([*itertools.islice(are_good, len(annotations or ()))])
        if not annotations or (all_good and num_keypoints is None):
            checked.append(record)
            continue
        kept = []
        for index, annotation in enumerate(annotations):
            kind, reason, replacement = _check_annotation(
                annotation, record, num_classes, shares=shares
            )
            if kind is None and check_masks and not annotation.get("iscrowd", 0):
                reason = _mask_problem(annotation.get("segmentation"), record)
                kind = "bad mask" if reason else None
            if kind is None and num_keypoints is not None:
                reason = keypoint_problem(annotation.get("keypoints"), num_keypoints)
                kind = "bad keypoints" if reason else None
            if kind is not None:
                counts[kind] = counts.get(kind, 0) + 1
                if len(problems) < MAX_LISTED:
                    problems.append(_describe(record, index, annotation, reason))
                continue
            clipped += replacement is not annotation
            kept.append(replacement)
        if len(kept) != len(annotations) or any(
            new is not old for new, old in zip(kept, annotations, strict=True)
        ):
            record = {**record, "annotations": kept}
        checked.append(record)

    total = sum(counts.values())
    if total:
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        listed = listing(problems, total)
        if not skip_bad:
            raise AnnotationError(
                f"data set {name!r} has {total} bad annotation(s) ({counted}):\n{listed}\n"
                f"{SKIP_ANNOTATIONS_ADVICE}"
            )
        logger.warning(f"{name}: left out {total} bad annotation(s) ({counted}):\n{listed}")
    if clipped:
        logger.info(
            f"{name}: clipped {clipped} box(es) that overhang their image by at most "
            f"{OVERHANG_TOLERANCE:g} pixels"
        )
    return checked


def check_num_classes(cfg: CfgNode, name: str) -> None:
    """Compare the classes of a loaded data set with those that the config's detector has.

    A detector with fewer would train a class as background, or fail deep inside; one with more
    would fail when it is evaluated, after training.

    Raises:
        AnnotationError: there are not as many of one as of the other.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    key = getattr(META_ARCH_REGISTRY.get(architecture), "num_classes_key", None)
    key = key or NUM_CLASSES_KEYS.get(architecture)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if key is None or classes is None:
        return
    num_classes = config_value(cfg, key)
    listed = ", ".join(classes[:MAX_LISTED]) + (", ..." if len(classes) > MAX_LISTED else "")
    if num_classes != len(classes):
        raise AnnotationError(
            f"data set {name!r} has {len(classes)} classes ({listed}) but {key} is {num_classes}"
        )


def check_mask_format(dataset_dicts: Sequence[dict]) -> None:
    """Look for masks that ``INPUT.MASK_FORMAT "polygon"`` is not for; crowd regions can have them.

    Args:
        dataset_dicts: in Detectron2's format.

    Raises:
        AnnotationError: a mask is not of polygons; names the first.
    """
    for record in dataset_dicts:
        for index, annotation in enumerate(record.get("annotations", ())):
            is_object = not annotation.get("iscrowd", 0)
            if is_object and not isinstance(annotation.get("segmentation"), list | None):
                reason = (
                    'expected a mask of polygons, got another; set INPUT.MASK_FORMAT "bitmask", '
                    "which is for all masks"
                )
                raise AnnotationError(_describe(record, index, annotation, reason))


def _describe(record: dict, index: int, annotation: dict, reason: str) -> str:
    identity = f", id {annotation['id']}" if "id" in annotation else ""
    image = record.get("file_name", record.get("image_id", "an image"))
    return (
        f"{image}: annotation {index}{identity}, "
        f"box {_format_box(annotation.get('bbox'))}: {reason}"
    )


def _format_box(box) -> str:
    try:
        return "(" + ", ".join(f"{float(number):g}" for number in box) + ")"
    except (TypeError, ValueError, OverflowError):
        return "None" if box is None else short(box)


def _boxes_are_shares(name: str, glances: Sequence[Glance]) -> bool:
    """Whether boxes are in 0..1, shares of width and height: if at least half lie in a pixel."""
    inside = sum(int(glance.are_in_first_pixel.sum()) for glance in glances)
    total = sum(glance.counted for glance in glances)
    if 0 < 2 * inside < total:
        logger.warning(
            f"{name}: {inside} of {total} boxes lie in the first pixel of their image; as they are "
            "few, they are taken for what they are, not for shares of width and height"
        )
    return inside > 0 and 2 * inside >= total


def _is_in_first_pixel(annotation: dict) -> bool:
    try:
        x1, y1, third, fourth = annotation["bbox"]
        is_xywh = annotation.get("bbox_mode") == BoxMode.XYWH_ABS
        x2, y2 = (x1 + third, y1 + fourth) if is_xywh else (third, fourth)
        return bool(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1)
    except (KeyError, TypeError, ValueError):  # which is said of it elsewhere
        return False


def _check_annotation(
    annotation: dict, record: dict, num_classes: int | None, *, shares: bool = False
) -> tuple[str | None, str, dict]:
    """One annotation; ``shares``: boxes of the data set seem to be in 0..1.

    Returns:
        (kind, reason, annotation): kind is None if it is good, and the annotation then possibly a
        copy with a clipped box; otherwise a word for counting and a sentence for people.
    """
    category = annotation.get("category_id")
    if isinstance(category, bool) or not isinstance(category, int | np.integer):
        return "bad category", f"category id {category!r} is not an integer", annotation
    if category < 0 or (num_classes is not None and category >= num_classes):
        limit = "" if num_classes is None else f"..{num_classes - 1}"
        return "bad category", f"category id {category} is not in 0{limit}", annotation
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return "unsupported box", f"box mode {mode} is not supported", annotation
    try:
        x1, y1, third, fourth = box = annotation["bbox"]
        if any(isinstance(number, str | bytes | bool) for number in box):
            raise TypeError  # float() would take them
        x1, y1, third, fourth = map(float, box)
    except (KeyError, TypeError, ValueError, OverflowError):
        return "unsupported box", "the box is not four numbers", annotation
    if not all(math.isfinite(number) for number in (x1, y1, third, fourth)):
        return "not finite", "the box is not finite", annotation
    is_xywh = mode == BoxMode.XYWH_ABS
    x2, y2 = (x1 + third, y1 + fourth) if is_xywh else (third, fourth)
    if x2 <= x1 or y2 <= y1:
        return "degenerate", "the box has no width or no height", annotation
    width, height = record.get("width"), record.get("height")
    if width is None or height is None:
        return None, "", annotation
    if shares and min(x1, y1) >= 0 and max(x2, y2) <= 1 and min(width, height) > 1:
        reason = (
            f"the box lies in the first pixel of the {width} x {height} image (w x h): coordinates "
            "in 0..1 are to be multiplied by width and height"
        )
        return "in 0..1", reason, annotation
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        reason = f"the box lies outside of the {width} x {height} image (w x h)"
        return "outside", reason, annotation
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    if overhang > OVERHANG_TOLERANCE:
        reason = f"the box overhangs the {width} x {height} image (w x h) by {overhang:g} pixels"
        return "overhanging", reason, annotation
    if overhang > 0:
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        box = [x1, y1, x2 - x1, y2 - y1] if is_xywh else [x1, y1, x2, y2]
        return None, "", {**annotation, "bbox": box}
    return None, "", annotation


def _mask_problem(segmentation, record: dict) -> str:
    if not isinstance(segmentation, np.ndarray | dict) and not segmentation:
        return "it has no mask (segmentation), which MODEL.MASK_ON needs"
    width, height = record.get("width", math.inf), record.get("height", math.inf)
    return mask_problem(segmentation, width, height)
