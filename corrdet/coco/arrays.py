"""Annotations and results in COCO's format, as arrays, checked row by row."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as mask_utils

from .completing import completed
from .masks import MaskError, are_drawable, check_encodings, encode, for_masks
from .messages import describe
from .polygons import Outlines, is_packed
from .rules import (
    MAX_COORDINATE,
    CocoFileError,
    are_numbers,
    check_unique_ids,
    is_box,
    is_crowd_flag,
    is_number,
    is_side,
    is_text,
    lists_of,
    side_words,
)

IOU_TYPES = ("bbox", "segm")
# Scores in float32 may be rounded to just above 1.
SCORE_TOLERANCE = 1e-6
# Of annotations whose polygons are looked at together.
ROWS = 10_000


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of I images and C categories, in the order of the file.

    Attributes:
        image_ids: I ids, ascending; everything else refers to images by their index here.
        file_names: of the I images; empty where the file names none.
        sizes: (I, 2) width and height in pixels, 0 where the file has none.
        category_ids: C ids, ascending.
        category_names: of the C categories.
        ids: (G,) the annotations' ids.
        images: (G,) in 0..I-1.
        categories: (G,) in 0..C-1.
        boxes: (G, 4) XYWH in pixels.
        areas: (G,) in square pixels, as annotated (of the mask, in COCO).
        is_crowd: (G,) bool.
        masks: G run-length encodings, or None where boxes are compared.
    """

    image_ids: list[Hashable]
    file_names: list[str] = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    category_ids: list[Hashable]
    category_names: list[str]
    ids: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)
    categories: np.ndarray = field(repr=False)
    boxes: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    is_crowd: np.ndarray = field(repr=False)
    masks: list[dict] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Detections:
    """N detections, in the order of the file.

    Attributes:
        images: (N,) index of the image in ``GroundTruth.image_ids``.
        categories: (N,) index in ``GroundTruth.category_ids``.
        scores: (N,).
        boxes: (N, 4) XYWH in pixels.
        areas: (N,) of the boxes, or of the masks where there are masks.
        masks: N run-length encodings, or None where boxes are compared.
    """

    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    masks: list[dict] | None = field(default=None, repr=False)


def ground_truth_from_coco(
    content: dict, iou_type: str = "bbox", *, source: str = "the annotations"
) -> GroundTruth:
    """Arrays of the content of an annotation file.

    As for pycocotools, crowds are what ``iscrowd`` says, and a key ``ignore`` has no effect. What
    annotations leave out is what :func:`~corrdet.coco.completing.completed` says; one without
    ``id`` gets a number.

    Args:
        content: an object with the lists images, annotations and categories.
        iou_type: "bbox" or "segm".
        source: where it is from, for messages.

    Raises:
        CocoFileError: a list, id, box or mask is missing; an id occurs twice or is unknown; a box
            is not four finite numbers, or has a negative size; so has an area; a mask is incomplete
            or has not the size of its image; ``iscrowd`` is neither 0 nor 1.
    """
    _check_iou_type(iou_type)
    lists_of(content, source)
    images, annotations, categories = lists_of(completed(content), source)
    images, image_ids = _by_id(images, "images", source)
    categories, category_ids = _by_id(categories, "categories", source)
    arrays = _rows(annotations, "annotations", source, image_ids, category_ids, iou_type)
    ids = [annotation.get("id", index) for index, annotation in enumerate(annotations, 1)]
    check_unique_ids(ids, "annotations", source)
    sizes = _image_sizes(images, source)
    masks = None
    if iou_type == "segm":
        masks = _ground_truth_masks(annotations, sizes[arrays["images"]], source)
    return GroundTruth(
        image_ids=image_ids,
        file_names=_texts(images, "file_name", "images", source, lambda image: ""),
        sizes=sizes,
        category_ids=category_ids,
        category_names=_texts(
            categories, "name", "categories", source, lambda category: str(category["id"])
        ),
        ids=np.array(ids),
        areas=_areas(annotations, source),
        is_crowd=_is_crowd(annotations, source),
        masks=masks,
        **arrays,
    )


def detections_from_coco(
    content: Sequence[dict],
    ground_truth: GroundTruth,
    iou_type: str = "bbox",
    *,
    source: str = "the detections",
    check_values: bool = True,
) -> Detections:
    """Arrays of the content of a results file; an empty one is no error.

    Args:
        content: objects with image_id, category_id, score and bbox, or segmentation (run-length
            encoded) for "segm".
        ground_truth: of the same data set.
        iou_type: "bbox" or "segm".
        source: where it is from, for messages.
        check_values: refuse scores and boxes that no detector should output.

    Raises:
        CocoFileError: not a list; a key is missing; an image or category is not in the ground
            truth; a score is not in [0, 1]; a box is not four finite numbers, or has a negative
            size; a mask is incomplete or has not the size of its image.
    """
    _check_iou_type(iou_type)
    if not isinstance(content, list):
        hint = ""
        if isinstance(content, dict) and "annotations" in content:
            hint = " (it looks like an annotation file)"
        raise CocoFileError(
            f"{source}: expected a list of detections, got {describe(content)}{hint}"
        )
    arrays = _rows(
        content,
        "detections",
        source,
        ground_truth.image_ids,
        ground_truth.category_ids,
        iou_type,
        check_boxes=check_values,
    )
    scores = _numbers(content, "score", "detections", source)
    if check_values:
        # Negated, so that NaN is bad as well.
        bad = np.flatnonzero(~((scores >= 0) & (scores <= 1 + SCORE_TOLERANCE)))
        if len(bad):
            raise CocoFileError(
                f"{source}: detections[{bad[0]}]: expected a score in [0, 1], got "
                f"{scores[bad[0]]}{_more(bad)}"
            )
    areas = arrays["boxes"][:, 2] * arrays["boxes"][:, 3]
    masks = None
    if iou_type == "segm":
        masks = [row.get("segmentation") for row in content]
        try:
            check_encodings(masks, ground_truth.sizes[arrays["images"]])
        except MaskError as error:
            where = f"{source}: detections[{error.index}]"
            raise CocoFileError(f"{where}: {error.reason}") from None
        areas = for_masks(mask_utils.area, masks, 1)[:, 0]
        # What the results say of boxes, if anything, is another head's.
        arrays["boxes"] = for_masks(mask_utils.toBbox, masks, 4)
    return Detections(scores=scores, areas=areas, masks=masks, **arrays)


def _check_iou_type(iou_type: str) -> None:
    if iou_type not in IOU_TYPES:
        raise ValueError(f"expected an IoU type of {', '.join(IOU_TYPES)}, got {iou_type!r}")


def _by_id(rows: list, what: str, source: str) -> tuple[list[dict], list]:
    """Rows in the order of their ids, and the ids."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or "id" not in row:
            raise CocoFileError(
                f"{source}: {what}[{index}]: expected an object with an id, got {describe(row)}"
            )
    ids = [row["id"] for row in rows]
    check_unique_ids(ids, what, source)
    try:
        rows = sorted(rows, key=lambda row: row["id"])
    except TypeError as error:
        raise CocoFileError(
            f"{source}: {what}: expected ids of one type, got numbers and texts"
        ) from error
    return rows, [row["id"] for row in rows]


def _rows(
    rows: list,
    what: str,
    source: str,
    image_ids: list,
    category_ids: list,
    iou_type: str,
    *,
    check_boxes: bool = True,
) -> dict[str, np.ndarray]:
    """What annotations and detections have in common: images, categories and boxes."""
    columns = {}
    for key, known, name in (
        ("image_id", image_ids, "images"),
        ("category_id", category_ids, "categories"),
    ):
        rows_by_id = {value: index for index, value in enumerate(known)}
        try:
            values = [row[key] for row in rows]
            column = np.fromiter(
                (rows_by_id.get(value, -1) for value in values), np.int64, len(rows)
            )
            # True is 1 for a dict.
            is_bad = bool in set(map(type, values))
        except (KeyError, TypeError, AttributeError):
            is_bad = True
        if is_bad:
            index, row = next(
                (index, row)
                for index, row in enumerate(rows)
                if not isinstance(row, dict) or not (is_number(row.get(key)) or _is_text(row, key))
            )
            if isinstance(row, dict) and key in row:
                expected, came = f"a number or a text under {key}", row[key]
            else:
                expected, came = f"an object with {key}", row
            raise CocoFileError(
                f"{source}: {what}[{index}]: expected {expected}, got {describe(came)}"
            )
        unknown = np.flatnonzero(column < 0)
        if len(unknown):
            raise CocoFileError(
                f"{source}: {what}[{unknown[0]}]: expected {key} to be of the {len(known)} {name} "
                f"of the ground truth, got {rows[unknown[0]][key]!r}{_more(unknown)}"
            )
        columns[name] = column
    columns["boxes"] = _boxes(rows, what, source, iou_type, check=check_boxes)
    return columns


def _boxes(rows: list, what: str, source: str, iou_type: str, *, check: bool) -> np.ndarray:
    """(n, 4) XYWH; of detections by masks 0, as they have the boxes around these."""
    if iou_type == "segm" and what == "detections":
        return np.zeros((len(rows), 4))
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
        sides = itertools.chain.from_iterable(row["bbox"] for row in rows)
        if boxes.shape != (len(rows), 4) or not are_numbers(sides):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        if not rows:
            return np.zeros((0, 4))
        index, row = next(
            (index, row) for index, row in enumerate(rows) if not is_box(row.get("bbox"))
        )
        hint = ""
        if "bbox" not in row and "segmentation" in row:
            hint = " (it has a segmentation: is the IoU type segm?)"
        raise CocoFileError(
            f"{source}: {what}[{index}]: expected four numbers under bbox, got "
            f"{describe(row.get('bbox'))}{hint}"
        ) from None
    if check:
        is_finite = np.all(np.abs(boxes) <= MAX_COORDINATE, axis=1)
        bad = np.flatnonzero(~is_finite | (boxes[:, 2] < 0) | (boxes[:, 3] < 0))
        if len(bad):
            expected = "no negative width or height" if is_finite[bad[0]] else "finite numbers"
            raise CocoFileError(
                f"{source}: {what}[{bad[0]}]: expected {expected} in bbox, got "
                f"{boxes[bad[0]].tolist()}{_more(bad)}"
            )
    return boxes


def _numbers(rows: list, key: str, what: str, source: str) -> np.ndarray:
    values = [row.get(key) for row in rows]
    if not all(map(is_number, values)):
        index = next(index for index, value in enumerate(values) if not is_number(value))
        raise CocoFileError(
            f"{source}: {what}[{index}]: expected a number under {key}, got "
            f"{describe(values[index])}"
        )
    return np.array(values, dtype=np.float64)


def _texts(
    rows: list[dict], key: str, what: str, source: str, default: Callable[[dict], str]
) -> list[str]:
    """A text of each row; ``default`` of those that have none."""
    for row in rows:
        if key in row and not is_text(row[key]):
            raise CocoFileError(
                f"{source}: {what}, id {row['id']!r}: expected a text as {key}, got "
                f"{describe(row[key])}"
            )
    return [row[key] if key in row else default(row) for row in rows]


def _is_text(row: dict, key: str) -> bool:
    return isinstance(row.get(key), str)


def _image_sizes(images: list[dict], source: str) -> np.ndarray:
    """(I, 2) width and height, 0 where the file has none."""
    sizes = [[image.get(key) or 0 for key in ("width", "height")] for image in images]
    for image, size in zip(images, sizes, strict=True):
        for key, side in zip(("width", "height"), size, strict=True):
            if side != 0 and not is_side(side):
                raise CocoFileError(
                    f"{source}: image {image['id']!r}: expected {side_words(key)}, got "
                    f"{describe(side)}"
                )
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _areas(annotations: list[dict], source: str) -> np.ndarray:
    areas = _numbers(annotations, "area", "annotations", source)
    # Negated, so that NaN is bad as well.
    bad = np.flatnonzero(~((areas >= 0) & np.isfinite(areas)))
    if len(bad):
        raise CocoFileError(
            f"{source}: annotations[{bad[0]}]: expected a finite area, not negative, got "
            f"{areas[bad[0]]}{_more(bad)}"
        )
    return areas


def _is_crowd(annotations: list[dict], source: str) -> np.ndarray:
    flags = [annotation.get("iscrowd") for annotation in annotations]
    for index, flag in enumerate(flags):
        if not is_crowd_flag(flag):
            raise CocoFileError(
                f"{source}: annotations[{index}]: expected iscrowd to be 0 or 1, got "
                f"{describe(flag)}"
            )
    return np.array([bool(flag) for flag in flags], dtype=bool)


def check_masks(content: dict, ground_truth: GroundTruth, source: str) -> None:
    """Whether the masks of an annotation file can be compared; what is sure to be is not encoded.

    Args:
        content: of the file, completed.
        ground_truth: of it.
        source: where it is from, for messages.

    Raises:
        CocoFileError: see :func:`ground_truth_from_coco`.
    """
    annotations = content["annotations"]
    image_sizes = ground_truth.sizes[ground_truth.images]
    are_good = np.zeros(len(annotations), dtype=bool)
    for start in range(0, len(annotations), ROWS):
        rows = [
            row
            for row in range(start, min(start + ROWS, len(annotations)))
            if is_packed(annotations[row].get("segmentation"))
        ]
        if rows:
            outlines = Outlines([annotations[row]["segmentation"] for row in rows])
            are_good[rows] = are_drawable(outlines, image_sizes[rows])
    rest = np.flatnonzero(~are_good)
    _ground_truth_masks([annotations[row] for row in rest], image_sizes[rest], source, rest)


def _ground_truth_masks(
    annotations: list[dict],
    image_sizes: np.ndarray,
    source: str,
    numbers: Sequence[int] | np.ndarray | None = None,
) -> list[dict]:
    """Run-length encodings of polygons, and of masks with or without compression.

    ``numbers``: of the annotations in the file, where they are some of it.
    """
    try:
        given = [annotation.get("segmentation") for annotation in annotations]
        masks = [
            mask
            if isinstance(mask, dict) and isinstance(mask.get("counts"), str | bytes)
            else encode(index, mask, size)
            for index, (mask, size) in enumerate(zip(given, image_sizes, strict=True))
        ]
        check_encodings(masks, image_sizes)
    except MaskError as error:
        annotation = annotations[error.index]
        number = error.index if numbers is None else numbers[error.index]
        identity = f"id {annotation.get('id')}, image_id {annotation['image_id']}"
        raise CocoFileError(
            f"{source}: annotations[{number}]: {error.reason} ({identity})"
        ) from None
    return masks


def _more(bad: np.ndarray) -> str:
    return f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""
