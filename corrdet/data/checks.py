"""Checks of data sets before training starts.

A box without width, or a class that the model does not have, otherwise shows up hours later as a
NaN or a CUDA assertion that names neither image nor annotation.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from pycocotools import mask as mask_utils
from tqdm import tqdm

from corrdet.data.masks import MaskError, check_encodings, encode
from corrdet.names import config_value

__all__ = [
    "AnnotationError",
    "ImageReadError",
    "check_coco_file",
    "check_coco_polygons",
    "check_dataset",
    "check_images_exist",
    "check_mask_format",
    "check_num_classes",
    "filter_unreadable",
    "unreadable_reason",
]

logger = logging.getLogger(__name__)

MAX_LISTED = 10
# Pixels by which a box may overhang its image. COCO's own annotations overhang by fractions of a
# pixel, and converters that are off by one, or by one on each side, are common; such boxes are
# clipped.
OVERHANG_TOLERANCE = 2.0
# Meta-architecture -> the key that says how many classes it detects. Others are not checked.
NUM_CLASSES_KEYS = {
    "CorrdetATSS": "MODEL.DENSE.NUM_CLASSES",
    "CorrdetDETR": "MODEL.DETR.NUM_CLASSES",
    "CorrdetDSSD": "MODEL.SSD.NUM_CLASSES",
    "CorrdetFCOS": "MODEL.DENSE.NUM_CLASSES",
    "CorrdetFoveaBox": "MODEL.DENSE.NUM_CLASSES",
    "CorrdetPAA": "MODEL.DENSE.NUM_CLASSES",
    "CorrdetRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "CorrdetRefineDet": "MODEL.SSD.NUM_CLASSES",
    "CorrdetRetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "CorrdetSSD": "MODEL.SSD.NUM_CLASSES",
    "CorrdetSparseRCNN": "MODEL.SPARSE_RCNN.NUM_CLASSES",
    "CorrdetYOLACT": "MODEL.YOLACT.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


class AnnotationError(ValueError):
    """Annotations that cannot be trained on; the message names the first of them."""


class ImageReadError(OSError):
    """An image cannot be read."""


def check_dataset(
    name: str,
    dataset_dicts: list[dict],
    *,
    skip_unreadable: bool = False,
    skip_bad_annotations: bool = False,
    check_images: bool = False,
    check_masks: bool = False,
    num_classes: int | None = None,
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

    Returns:
        The checked list. Boxes that overhang their image by up to 2 pixels are clipped to it.

    Raises:
        AnnotationError: without ``skip_bad_annotations``, for boxes that are not finite, without
            width or height, outside of the image or overhanging it by more than 2 pixels, for
            category ids out of range, and for masks; names the first ten and counts all.
        ImageReadError: with ``check_images`` and without ``skip_unreadable``.
    """
    if num_classes is None:
        classes = MetadataCatalog.get(name).get("thing_classes")
        num_classes = None if classes is None else len(classes)
    checked: list[dict] = []
    problems: list[str] = []
    kinds: dict[str, int] = {}
    clipped = 0
    for record in dataset_dicts:
        annotations = record.get("annotations")
        if not annotations:
            checked.append(record)
            continue
        kept = []
        for index, annotation in enumerate(annotations):
            kind, reason, replacement = _check_annotation(annotation, record, num_classes)
            if kind is None and check_masks and not annotation.get("iscrowd", 0):
                kind, reason = _check_mask(annotation.get("segmentation"), record)
            if kind is not None:
                kinds[kind] = kinds.get(kind, 0) + 1
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

    total = sum(kinds.values())
    if total:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        listing = _list(problems, total)
        if not skip_bad_annotations:
            raise AnnotationError(
                f"data set {name!r} has {total} bad annotation(s) ({counts}):\n{listing}\n"
                f"{SKIP_ANNOTATIONS_ADVICE}"
            )
        logger.warning(f"{name}: left out {total} bad annotation(s) ({counts}):\n{listing}")
    if clipped:
        logger.info(
            f"{name}: clipped {clipped} box(es) that overhang their image by at most "
            f"{OVERHANG_TOLERANCE:g} pixels"
        )

    if skip_unreadable:
        return filter_unreadable(name, checked)
    if check_images:
        unreadable = _find_unreadable(name, checked)
        if unreadable:
            raise ImageReadError(
                f"data set {name!r} has {len(unreadable)} image(s) that cannot be read:\n"
                f"{_list_unreadable(unreadable)}\n{SKIP_ADVICE}"
            )
    return checked


def check_coco_file(path: str) -> None:
    """Check that Detectron2's loader can read a COCO annotation file.

    That loader fails with errors that name neither file nor annotation. What it reads without
    complaint, such as boxes without area, is :func:`check_dataset`'s.

    Raises:
        AnnotationError: not JSON, or not what COCO's format has; names the file, and the first ten
            images and annotations by their ids.
    """
    content = _read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) for part in parts
    ):
        raise AnnotationError(
            f"{path} is not in COCO's format: expected an object with the lists {', '.join(parts)}"
        )
    if not content["categories"]:
        raise AnnotationError(f"{path} has no categories")
    problems = [
        *_find_incomplete(content["categories"], "category", ("id", "name")),
        *_find_incomplete(content["images"], "image", ("id", "file_name", "width", "height")),
        *_find_incomplete(content["annotations"], "annotation", ("id", "image_id", "category_id")),
    ]
    if not problems:
        problems = _find_bad_coco_annotations(content)
    if problems:
        raise AnnotationError(f"{path} has {len(problems)} error(s):\n{_list(problems)}")


def check_coco_polygons(path: str, *, skip_bad_annotations: bool = False) -> None:
    """Find the polygons of a COCO annotation file that Detectron2's loader leaves out.

    With the last polygon of an object it leaves out the object, and says how many, but not which.

    Args:
        path: a file that it has loaded.
        skip_bad_annotations: log them instead of raising.

    Raises:
        AnnotationError: polygons of fewer than three points or of half a point; names the first ten
            objects and counts all.
    """
    content = _read_json(path)
    file_names = {image["id"]: image["file_name"] for image in content["images"]}
    problems = []
    for annotation in content.get("annotations", ()):
        segmentation = annotation.get("segmentation")
        if not segmentation or isinstance(segmentation, dict):
            continue
        reason = next(filter(None, map(_polygon_problem, segmentation)), None)
        if reason and annotation["image_id"] in file_names:
            image = file_names[annotation["image_id"]]
            problems.append(f"{image}: annotation id {annotation['id']}: {reason}")
    if not problems:
        return
    found = f"{path} has {len(problems)} object(s) with bad polygons"
    if not skip_bad_annotations:
        raise AnnotationError(f"{found}:\n{_list(problems)}\n{SKIP_ANNOTATIONS_ADVICE}")
    logger.warning(f"{found}, which are left out:\n{_list(problems)}")


def _read_json(path: str):
    try:
        with PathManager.open(path, "r") as file:
            return json.load(file)
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON, it may be incomplete: {error}") from error


def _list(problems: Sequence[str], total: int | None = None, limit: int | None = MAX_LISTED) -> str:
    """The first of them, a line each, and how many more there are of ``total``, by default all."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    more = (len(problems) if total is None else total) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def _find_incomplete(entries: list, what: str, keys: Sequence[str]) -> list[str]:
    problems = []
    for index, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            identity = f"id {entry['id']}" if "id" not in missing else f"number {index}"
            problems.append(f"{what} {identity}: has no {', '.join(missing)}")
    return problems


def _find_bad_coco_annotations(content: dict) -> list[str]:
    categories = {category["id"]: category["name"] for category in content["categories"]}
    file_names = {image["id"]: image["file_name"] for image in content["images"]}
    problems = []
    seen = set()
    for annotation in content["annotations"]:
        reasons = []
        if annotation["id"] in seen:
            reasons.append("another annotation has the same id")
        seen.add(annotation["id"])
        if annotation["category_id"] not in categories:
            known = ", ".join(f"{key} ({name})" for key, name in list(categories.items())[:10])
            if len(categories) > 10:
                known += ", ..."
            reasons.append(
                f"category_id {annotation['category_id']!r} is not among the categories: {known}"
            )
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            reasons.append(f"bbox is {box!r}, expected [x, y, width, height]")
        if not _is_segmentation(annotation.get("segmentation")):
            reasons.append(NO_SEGMENTATION)
        image = file_names.get(annotation["image_id"], f"image {annotation['image_id']!r}")
        problems += [f"{image}: annotation id {annotation['id']}: {reason}" for reason in reasons]
    return problems


def check_num_classes(cfg: CfgNode, name: str) -> None:
    """Compare the classes of a loaded data set with those that the config's detector has.

    A detector with fewer would train a class as background, or fail deep inside; one with more
    would fail when it is evaluated, after training.

    Raises:
        AnnotationError: there are not as many of one as of the other.
    """
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if key is None or classes is None:
        return
    of_model = config_value(cfg, key)
    listed = ", ".join(classes[:MAX_LISTED]) + (", ..." if len(classes) > MAX_LISTED else "")
    if of_model != len(classes):
        raise AnnotationError(
            f"data set {name!r} has {len(classes)} classes ({listed}) but {key} is {of_model}"
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


def check_images_exist(name: str, dataset_dicts: Sequence[dict]) -> None:
    """Look for every image file, without reading it; addresses such as s3://... are not checked.

    Raises:
        ImageReadError: files are missing; names the first ten and counts all.
    """
    bar = tqdm(
        dataset_dicts,
        desc=f"looking for the images of {name}",
        unit="image",
        disable=len(dataset_dicts) < 5000,
    )
    missing = [
        record["file_name"]
        for record in bar
        if "://" not in record["file_name"] and not os.path.isfile(record["file_name"])
    ]
    if missing:
        raise ImageReadError(
            f"{len(missing)} of the {len(dataset_dicts)} images of data set {name!r} are missing:\n"
            f"{_list(missing)}\n{SKIP_ADVICE}"
        )


SKIP_ADVICE = (
    "Replace the file, or leave out images that cannot be read with DATASETS.SKIP_UNREADABLE True."
)
SKIP_ANNOTATIONS_ADVICE = (
    "Correct the annotation file, or leave them out with DATASETS.SKIP_BAD_ANNOTATIONS True."
)
NO_SEGMENTATION = "its mask is neither polygons nor COCO's run-length encoding"


def filter_unreadable(name: str, dataset_dicts: Sequence[dict], threads: int = 8) -> list[dict]:
    """Decode every image, drop those that cannot be, and log their names.

    Args:
        name: the data set's name, for the log.
        dataset_dicts: with ``file_name``; not changed.
        threads: how many images to decode at once.

    Returns:
        The readable ones, in order.

    Raises:
        ImageReadError: if none is left.
    """
    unreadable = _find_unreadable(name, dataset_dicts, threads)
    if not unreadable:
        return list(dataset_dicts)
    listing = _list_unreadable(unreadable, limit=None)
    if len(unreadable) == len(dataset_dicts):
        raise ImageReadError(
            f"none of the {len(dataset_dicts)} images of data set {name!r} can be read:\n"
            f"{_list_unreadable(unreadable)}"
        )
    logger.warning(
        f"{name}: left out {len(unreadable)} of {len(dataset_dicts)} images that cannot be read:\n"
        f"{listing}"
    )
    return [record for index, record in enumerate(dataset_dicts) if index not in unreadable]


def unreadable_reason(file_name: str, image_format: str | None = "BGR") -> str | None:
    """Why Detectron2 cannot read this image, or None if it can."""
    try:
        detection_utils.read_image(file_name, format=image_format)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        return f"{type(error).__name__}: {error}"
    return None


def _find_unreadable(
    name: str, dataset_dicts: Sequence[dict], threads: int = 8
) -> dict[int, tuple[str, str]]:
    """Index -> (file name, reason)."""
    file_names = [record["file_name"] for record in dataset_dicts]
    unreadable = {}
    # Threads: PIL decodes without the interpreter's lock.
    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(unreadable_reason, file_names)
        bar = tqdm(reasons, total=len(file_names), desc=f"reading {name}", unit="image")
        for index, reason in enumerate(bar):
            if reason is not None:
                unreadable[index] = (file_names[index], reason)
    return unreadable


def _list_unreadable(unreadable: dict[int, tuple[str, str]], limit: int | None = MAX_LISTED) -> str:
    problems = [f"{file_name}: {reason}" for file_name, reason in unreadable.values()]
    return _list(problems, limit=limit)


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
    except (TypeError, ValueError):
        return repr(box)


def _check_annotation(
    annotation: dict, record: dict, num_classes: int | None
) -> tuple[str | None, str, dict]:
    """One annotation.

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
        x1, y1, third, fourth = (float(number) for number in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
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


def _check_mask(segmentation, record: dict) -> tuple[str | None, str]:
    """One mask, as polygons, in COCO's run-length encoding or as an array; kind and reason as
    above."""
    width, height = record.get("width", math.inf), record.get("height", math.inf)
    reason = ""
    try:
        if isinstance(segmentation, dict):
            reason = _check_run_lengths(segmentation, width, height)
        elif isinstance(segmentation, np.ndarray):
            reason = "" if segmentation.any() else "its mask is empty"
        elif not segmentation:
            reason = "it has no mask (segmentation), which MODEL.MASK_ON needs"
        elif isinstance(segmentation, list):
            reason = _check_polygons(segmentation, width, height)
        else:
            raise TypeError
    except MaskError as error:
        reason = f"its mask: {error.reason}"
    except (KeyError, TypeError, ValueError):
        reason = NO_SEGMENTATION
    return "bad mask" if reason else None, reason


def _is_segmentation(segmentation) -> bool:
    """Whether Detectron2's loader can read it."""
    if not isinstance(segmentation, dict):
        is_list = isinstance(segmentation, list)
        return not segmentation or is_list and all(isinstance(part, list) for part in segmentation)
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        try:
            encode(0, segmentation, segmentation["size"][::-1])
        except (KeyError, TypeError, ValueError):
            return False
    return "size" in segmentation and counts is not None


def _polygon_problem(polygon) -> str | None:
    if not isinstance(polygon, list | np.ndarray):
        return NO_SEGMENTATION
    if len(polygon) < 6 or len(polygon) % 2:
        return (
            f"a polygon of its mask has {len(polygon)} coordinates, not an even number of at "
            "least 6"
        )
    return None


def _check_polygons(polygons: Sequence, width: float, height: float) -> str:
    within = False
    area = 0.0
    for polygon in polygons:
        reason = _polygon_problem(polygon)
        if reason:
            return reason
        if not np.isfinite(polygon).all():
            return "a polygon of its mask is not finite"
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        within |= x.min() < width and x.max() > 0 and y.min() < height and y.max() > 0
        area += abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    if not within:
        return f"its mask lies outside of the {width} x {height} image (w x h)"
    # One that intersects itself can have pixels, though what it runs around on either side cancels.
    if area < 1 and math.isfinite(width):
        lists = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in polygons]
        return "" if mask_utils.area(encode(0, lists, (width, height))) else "its mask is empty"
    return ""


def _check_run_lengths(segmentation: dict, width: float, height: float) -> str:
    if isinstance(segmentation["counts"], list):
        size = (width, height) if math.isfinite(width) else segmentation["size"][::-1]
        segmentation = encode(0, segmentation, size)
    size = (width, height) if math.isfinite(width) else (0, 0)
    check_encodings([segmentation], np.array([size]))
    return "" if mask_utils.area(segmentation) else "its mask is empty"
