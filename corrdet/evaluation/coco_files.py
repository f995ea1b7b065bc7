"""Annotations and results in COCO's format, as arrays, checked row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as mask_utils

__all__ = [
    "IOU_TYPES",
    "CocoFileError",
    "Detections",
    "GroundTruth",
    "detections_from_coco",
    "ground_truth_from_coco",
    "read_detections",
    "read_ground_truth",
]

IOU_TYPES = ("bbox", "segm")
# Scores in float32 may be rounded to just above 1.
SCORE_TOLERANCE = 1e-6


class CocoFileError(ValueError):
    """A file is not what COCO's format has; one line that names file, row and reason."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of I images and C categories, in the order of the file.

    Attributes:
        image_ids: I ids, ascending; everything else refers to images by their place here.
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
        images: (N,) place of the image in ``GroundTruth.image_ids``.
        categories: (N,) place in ``GroundTruth.category_ids``.
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


def read_ground_truth(path: str | os.PathLike, iou_type: str = "bbox") -> GroundTruth:
    """Read a COCO annotation file.

    Args:
        path: the file.
        iou_type: "bbox" or "segm".

    Raises:
        CocoFileError: not JSON, or not in the format, see :func:`ground_truth_from_coco`.
        OSError: the file cannot be read.
    """
    return ground_truth_from_coco(_load(path), iou_type, source=str(path))


def read_detections(
    path: str | os.PathLike, ground_truth: GroundTruth, iou_type: str = "bbox"
) -> Detections:
    """Read a COCO results file.

    Args:
        path: the file.
        ground_truth: of the same data set.
        iou_type: "bbox" or "segm".

    Raises:
        CocoFileError: not JSON, or not in the format, see :func:`detections_from_coco`.
        OSError: the file cannot be read.
    """
    return detections_from_coco(_load(path), ground_truth, iou_type, source=str(path))


def ground_truth_from_coco(
    content: dict, iou_type: str = "bbox", *, source: str = "the annotations"
) -> GroundTruth:
    """Arrays of the content of an annotation file.

    As for pycocotools, crowds are what ``iscrowd`` says, and a key ``ignore`` has no effect. An
    annotation without ``area`` has that of its box; one without ``id`` gets a number.

    Args:
        content: an object with the lists images, annotations and categories.
        iou_type: "bbox" or "segm".
        source: where it is from, for messages.

    Raises:
        CocoFileError: a list, id, box or mask is missing; an id occurs twice or is unknown; a box
            is not four finite numbers, or has a negative size; an area is not a number.
    """
    _check_iou_type(iou_type)
    if not isinstance(content, dict):
        raise CocoFileError(
            f"{source}: expected an object with the lists images, annotations and categories, got "
            f"{_describe(content)}"
        )
    parts = {}
    for part in ("images", "annotations", "categories"):
        parts[part] = content.get(part)
        if not isinstance(parts[part], list):
            raise CocoFileError(
                f"{source}: expected a list {part!r}, got {_describe(content.get(part))}"
            )
    images, image_index = _by_id(parts["images"], "images", source)
    categories, category_index = _by_id(parts["categories"], "categories", source)
    annotations = parts["annotations"]
    arrays = _rows(annotations, "annotations", source, image_index, category_index, iou_type)
    ids = [annotation.get("id", index) for index, annotation in enumerate(annotations, 1)]
    _check_unique(ids, "annotations", source)
    box_areas = (arrays["boxes"][:, 2] * arrays["boxes"][:, 3]).tolist()
    with_area = [
        annotation if "area" in annotation else {"area": area}
        for annotation, area in zip(annotations, box_areas, strict=True)
    ]
    masks = None
    if iou_type == "segm":
        masks = []
        for index, annotation in enumerate(annotations):
            image = images[arrays["images"][index]]
            masks.append(_ground_truth_mask(annotation, image, f"{source}: annotations[{index}]"))
    return GroundTruth(
        image_ids=[image["id"] for image in images],
        file_names=[str(image.get("file_name", "")) for image in images],
        sizes=np.array(
            [(image.get("width") or 0, image.get("height") or 0) for image in images]
        ).reshape(-1, 2),
        category_ids=[category["id"] for category in categories],
        category_names=[str(category.get("name", category["id"])) for category in categories],
        ids=np.array(ids),
        areas=_numbers(with_area, "area", "annotations", source),
        is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
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
            size.
    """
    _check_iou_type(iou_type)
    if not isinstance(content, list):
        hint = ""
        if isinstance(content, dict) and "annotations" in content:
            hint = " (it looks like an annotation file)"
        raise CocoFileError(
            f"{source}: expected a list of detections, got {_describe(content)}{hint}"
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
        masks = [row["segmentation"] for row in content]
        areas = _of_masks(mask_utils.area, masks, 1)[:, 0]
    return Detections(scores=scores, areas=areas, masks=masks, **arrays)


def _load(path: str | os.PathLike):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:  # also of the encoding
        raise CocoFileError(f"{path}: expected JSON, it may be incomplete: {error}") from error


def _check_iou_type(iou_type: str) -> None:
    if iou_type not in IOU_TYPES:
        raise ValueError(f"expected an IoU type of {', '.join(IOU_TYPES)}, got {iou_type!r}")


def _by_id(rows: list, what: str, source: str) -> tuple[list[dict], list]:
    """Rows in the order of their ids, and the ids."""
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or "id" not in row:
            raise CocoFileError(
                f"{source}: {what}[{index}]: expected an object with an id, got {_describe(row)}"
            )
    ids = [row["id"] for row in rows]
    _check_unique(ids, what, source)
    try:
        rows = sorted(rows, key=lambda row: row["id"])
    except TypeError as error:
        raise CocoFileError(
            f"{source}: {what}: expected ids of one type, got numbers and texts"
        ) from error
    return rows, [row["id"] for row in rows]


def _check_unique(ids: list, what: str, source: str) -> None:
    for index, value in enumerate(ids):
        if not isinstance(value, (int, str)):
            raise CocoFileError(
                f"{source}: {what}[{index}]: expected a number or a text as id, got "
                f"{_describe(value)}"
            )
    if len(set(ids)) != len(ids):
        seen = {}
        for index, value in enumerate(ids):
            if value in seen:
                raise CocoFileError(
                    f"{source}: {what}[{index}]: expected an id of its own, got {value!r}, that of "
                    f"{what}[{seen[value]}]"
                )
            seen[value] = index


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
        place = {value: index for index, value in enumerate(known)}
        try:
            column = np.fromiter((place.get(row[key], -1) for row in rows), np.int64, len(rows))
        except (KeyError, TypeError, AttributeError):
            index, row = next(
                (index, row)
                for index, row in enumerate(rows)
                if not isinstance(row, dict) or not isinstance(row.get(key), (int, float, str))
            )
            raise CocoFileError(
                f"{source}: {what}[{index}]: expected an object with {key}, got {_describe(row)}"
            ) from None
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
    """(n, 4) XYWH; for masks without a box, the box around the mask."""
    if iou_type == "segm":
        for index, row in enumerate(rows):
            mask = row.get("segmentation")
            is_encoded = isinstance(mask, dict) and {"size", "counts"} <= mask.keys()
            if not (is_encoded or (what == "annotations" and isinstance(mask, list) and mask)):
                expected = "a run-length encoding" if what == "detections" else "polygons or a mask"
                raise CocoFileError(
                    f"{source}: {what}[{index}]: expected {expected} under segmentation, got "
                    f"{_describe(mask)}"
                )
        if what == "detections":
            # What the results say of boxes, if anything, is another head's.
            masks = [row["segmentation"] for row in rows]
            try:
                return _of_masks(mask_utils.toBbox, masks, 4)
            except Exception as error:
                raise CocoFileError(
                    f"{source}: expected masks as compressed run-length encodings: {error}"
                ) from error
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
        if boxes.shape != (len(rows), 4):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        if not rows:
            return np.zeros((0, 4))
        index, row = next(
            (index, row) for index, row in enumerate(rows) if not _is_box(row.get("bbox"))
        )
        hint = ""
        if "bbox" not in row and "segmentation" in row:
            hint = " (it has a segmentation: is the IoU type segm?)"
        raise CocoFileError(
            f"{source}: {what}[{index}]: expected four numbers under bbox, got "
            f"{_describe(row.get('bbox'))}{hint}"
        ) from None
    if check:
        is_finite = np.isfinite(boxes).all(axis=1)
        bad = np.flatnonzero(~is_finite | (boxes[:, 2] < 0) | (boxes[:, 3] < 0))
        if len(bad):
            expected = "no negative width or height" if is_finite[bad[0]] else "finite numbers"
            raise CocoFileError(
                f"{source}: {what}[{bad[0]}]: expected {expected} in bbox, got "
                f"{boxes[bad[0]].tolist()}{_more(bad)}"
            )
    return boxes


def _of_masks(function, masks: list[dict], columns: int) -> np.ndarray:
    """(n, columns) values of masks; pycocotools 2.0.11 cannot take more than 63 with numpy 2."""
    parts = [
        np.asarray(function(masks[start : start + 63]), dtype=np.float64).reshape(-1, columns)
        for start in range(0, len(masks), 63)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, columns))


def _is_box(value) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(number, (int, float)) for number in value)
    )


def _numbers(rows: list, key: str, what: str, source: str) -> np.ndarray:
    try:
        numbers = [row[key] for row in rows]
        values = np.array(numbers, dtype=np.float64).reshape(len(rows))
        if np.isnan(values).any() and None in numbers:  # which numpy takes for NaN
            raise TypeError
        return values
    except (KeyError, TypeError, ValueError):
        index, row = next(
            (index, row)
            for index, row in enumerate(rows)
            if not isinstance(row.get(key), (int, float))
        )
        raise CocoFileError(
            f"{source}: {what}[{index}]: expected a number under {key}, got "
            f"{_describe(row.get(key))}"
        ) from None


def _ground_truth_mask(annotation: dict, image: dict, where: str) -> dict:
    """Run-length encoding of polygons, or of a mask encoded without compression."""
    mask = annotation["segmentation"]
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return mask
    if not image.get("height") or not image.get("width"):
        raise CocoFileError(f"{where}: expected its image to have width and height, got {image}")
    try:
        encoded = mask_utils.frPyObjects(mask, image["height"], image["width"])
        return mask_utils.merge(encoded) if isinstance(mask, list) else encoded
    except Exception as error:
        raise CocoFileError(f"{where}: expected polygons or a mask, got: {error}") from error


def _more(bad: np.ndarray) -> str:
    return f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""


def _describe(value) -> str:
    """A short text of what came, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    text = repr(value)
    if len(text) > 100:
        text = text[:97] + "..."
    return f"{type(value).__name__} {text}"
