"""Checks of data sets before training starts.

A box without width, or a class that the model does not have, otherwise shows up hours later as a
NaN or a CUDA assertion that names neither image nor annotation.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from tqdm import tqdm

from corrdet.coco import AnnotationError, mask_problem
from corrdet.coco.messages import MAX_LISTED, describe, listing, short
from corrdet.coco.rules import OVERHANG_TOLERANCE, is_side
from corrdet.errors import CorrdetError
from corrdet.names import config_value

from .images import TURNED, UPRIGHT, Header, read_header, read_image

logger = logging.getLogger(__name__)

# How many classes the detectors of Detectron2 have. Corrdet's, and others', say it themselves, with
# an attribute num_classes_key; those that do not are not checked.
NUM_CLASSES_KEYS = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


class ImageReadError(CorrdetError, OSError):
    """An image cannot be read."""


class ImageSizeError(CorrdetError, SizeMismatchError):
    """An image does not have the size that its data set states, or one that cannot be used."""


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
    checked = _check_annotations(
        name, dataset_dicts, num_classes, skip_bad=skip_bad_annotations, check_masks=check_masks
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


def _check_annotations(
    name: str,
    dataset_dicts: list[dict],
    num_classes: int | None,
    *,
    skip_bad: bool,
    check_masks: bool,
) -> list[dict]:
    """The list with clipped boxes, and if ``skip_bad`` without bad annotations."""
    checked: list[dict] = []
    problems: list[str] = []
    counts: dict[str, int] = {}
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
                reason = _mask_problem(annotation.get("segmentation"), record)
                kind = "bad mask" if reason else None
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
            f"{listing(missing)}\n{SKIP_ADVICE}"
        )


def check_image_headers(
    name: str, dataset_dicts: list[dict], *, skip: bool = False, shapes: Sequence[tuple] = ()
) -> list[dict]:
    """Compare image files with what the data set says of them, by their headers.

    What is read otherwise than Detectron2 would is logged, once for all: images of more than 8
    bits, and images that are not turned by their EXIF orientation, as the stated size is that of
    the stored pixels.

    Args:
        name: of the data set, for messages.
        dataset_dicts: not changed; files at addresses such as s3://... are not looked at.
        skip: leave out images instead of raising, and log which. Those without a readable header
            stay, for who decodes them.
        shapes: (shortest edge, longest edge) of the resizings that they will go through.

    Returns:
        The checked list; images without a stated size have that of their file.

    Raises:
        ImageSizeError: an image has another size than stated, or is so long that no pixel of its
            shorter side would be left; names the first ten and counts all.
        ImageReadError: a header cannot be read.
        AnnotationError: a stated size is no whole number of pixels.
    """
    for record in dataset_dicts:
        for key in ("width", "height"):
            if key in record and not is_side(record[key]):
                raise AnnotationError(
                    f"data set {name!r}: image {record.get('file_name')}: expected a whole number "
                    f"of pixels as {key}, got {describe(record[key])}"
                )
    checked, problems, unreadable = [], [], []
    unturned, ambiguous, deep = [], [], []
    for record, header in zip(dataset_dicts, _headers(name, dataset_dicts), strict=True):
        file_name = record["file_name"]
        if isinstance(header, str):
            unreadable.append(f"{file_name}: {header}")
        elif header is not None:
            width, height = stated = _stated_size(record) or header.shown_size
            reason = _size_problem(header, stated, shapes)
            if reason:
                problems.append(f"{file_name}: {reason}")
                continue
            if header.is_stated_unturned(width, height):
                unturned.append(file_name)
            elif header.orientation not in UPRIGHT and header.size == header.shown_size:
                ambiguous.append(file_name)
            if header.is_deep:
                deep.append(file_name)
            if _stated_size(record) is None:
                record = {**record, "width": width, "height": height}
        checked.append(record)
    if unreadable and not skip:
        raise ImageReadError(
            f"data set {name!r} has {len(unreadable)} image(s) that cannot be read:\n"
            f"{listing(unreadable)}\n{SKIP_ADVICE}"
        )
    if problems:
        found = f"{len(problems)} of {len(dataset_dicts)} images whose size does not do"
        if not skip:
            raise ImageSizeError(
                f"data set {name!r} has {found}:\n{listing(problems)}\nCorrect the sizes and boxes "
                "or the files, or leave these images out with DATASETS.SKIP_UNREADABLE True."
            )
        logger.warning(f"{name}: left out {found}:\n{listing(problems, limit=None)}")
    for files, words in (
        (unturned, "not turned by EXIF, as the data set states the size of the stored pixels"),
        (ambiguous, "mirrored or turned by EXIF, and their sizes cannot tell whether boxes are"),
        (deep, "of 16 or 32 bits a channel, which are scaled to 0..255"),
    ):
        if files:
            message = f"{name}: {len(files)} image(s) are {words}; the first is {files[0]}"
            # Not again at each evaluation.
            log_first_n(logging.WARNING, message, key="message", name=__name__)
    return checked


def _headers(name: str, dataset_dicts: Sequence[dict]) -> Iterator[Header | str | None]:
    """Headers, texts that say why there is none, and None where none was looked for."""

    def read(record: dict) -> Header | str | None:
        if "://" in record["file_name"]:
            return None
        try:
            return read_header(record["file_name"], _stated_size(record))
        except Exception as error:  # PIL raises many types
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(8) as pool:
        yield from tqdm(
            pool.map(read, dataset_dicts),
            total=len(dataset_dicts),
            desc=f"reading the headers of the images of {name}",
            unit="image",
            disable=len(dataset_dicts) < 5000,
        )


def _stated_size(record: dict) -> tuple[int, int] | None:
    return (record["width"], record["height"]) if {"width", "height"} <= record.keys() else None


def _size_problem(header: Header, stated: tuple[int, int], shapes: Sequence[tuple]) -> str:
    if stated not in (header.size, header.shown_size):
        turned = ""
        if header.orientation in TURNED:
            width, height = header.shown_size
            turned = f", turned by EXIF {width} x {height}"
        return (
            f"the data set says {stated[0]} x {stated[1]}, the file has {header.size[0]} x "
            f"{header.size[1]}{turned} (w x h)"
        )
    short, long = sorted(stated)
    for shortest, longest in shapes:
        # As Detectron2's ResizeShortestEdge.
        if shortest and int(short * min(shortest / short, longest / long) + 0.5) < 1:
            return (
                f"{stated[0]} x {stated[1]} (w x h), resized to at most {longest} pixels, has a "
                "side of no pixel"
            )
    return ""


SKIP_ADVICE = (
    "Replace the file, or leave out images that cannot be read with DATASETS.SKIP_UNREADABLE True."
)
SKIP_ANNOTATIONS_ADVICE = (
    "Correct the annotation file, or leave them out with DATASETS.SKIP_BAD_ANNOTATIONS True."
)


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
        read_image(file_name, image_format)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        return f"{type(error).__name__}: {error}"
    return None


def _unreadable_reason_once(file_name: str) -> str | None:
    """:func:`unreadable_reason`; a test set is checked at each evaluation, and decoded once."""
    try:
        status = os.stat(file_name)
    except OSError:
        return unreadable_reason(file_name)
    return _unreadable_reason_of(file_name, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1_000_000)
def _unreadable_reason_of(file_name: str, _time: int, _size: int) -> str | None:
    return unreadable_reason(file_name)


def _find_unreadable(
    name: str, dataset_dicts: Sequence[dict], threads: int = 8
) -> dict[int, tuple[str, str]]:
    """Index -> (file name, reason)."""
    file_names = [record["file_name"] for record in dataset_dicts]
    unreadable = {}
    # Threads: PIL decodes without the interpreter's lock.
    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(_unreadable_reason_once, file_names)
        bar = tqdm(reasons, total=len(file_names), desc=f"reading {name}", unit="image")
        for index, reason in enumerate(bar):
            if reason is not None:
                unreadable[index] = (file_names[index], reason)
    return unreadable


def _list_unreadable(unreadable: dict[int, tuple[str, str]], limit: int | None = MAX_LISTED) -> str:
    problems = [f"{file_name}: {reason}" for file_name, reason in unreadable.values()]
    return listing(problems, limit=limit)


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
        return short(box)


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
    if min(x1, y1) >= 0 and max(x2, y2) <= 1 and min(width, height) > 1:
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
