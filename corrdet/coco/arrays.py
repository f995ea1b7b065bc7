"""Annotations and results in COCO's format, as arrays, checked row by row."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from . import columns
from .completing import completed
from .federated import Federated, federated_from
from .masks import for_masks
from .messages import describe, printable
from .rules import CocoFileError, check_unique_ids, is_side, is_text, lists_of, side_words
from .skipping import without_bad_rows

IOU_TYPES = ("bbox", "segm")
MAX_NAMED = 5
AROUND_MASKS = "There are masks and no boxes: boxes are those around the masks."


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
        federated: which classes were looked for in which images; None where all were, in all.
        notes: sentences on what a reader of measures has to know of the file.
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
    federated: Federated | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


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
        notes: sentences on what a reader of measures has to know of the file.
    """

    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    masks: list[dict] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


def ground_truth_from_coco(
    content: dict,
    iou_type: str = "bbox",
    *,
    source: str = "the annotations",
    skip_bad: bool = False,
) -> GroundTruth:
    """Arrays of the content of an annotation file.

    As for pycocotools, crowds are what ``iscrowd`` says, and a key ``ignore`` has no effect. What
    annotations leave out is what :func:`~corrdet.coco.completing.completed` says; one without
    ``id`` gets a number; where all have masks alone, boxes are those around these.

    Args:
        content: an object with the lists images, annotations and categories.
        iou_type: "bbox" or "segm".
        source: where it is from, for messages.
        skip_bad: leave out annotations that cannot be used, and note how many.

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
    fields: dict[str, Any] = {
        "image_ids": image_ids,
        "file_names": _texts(images, "file_name", "images", source, _name_in_url),
        "sizes": _image_sizes(images, source),
        "category_ids": category_ids,
        "category_names": _texts(
            categories, "name", "categories", source, lambda category: str(category["id"])
        ),
    }
    federated = federated_from(images, categories, category_ids, source)
    values, notes = without_bad_rows(
        lambda rows: _annotated(rows, iou_type, fields, source), annotations, skip_bad=skip_bad
    )
    if federated is not None:
        values = _by_lvis(values, notes)
    if iou_type == "bbox" and columns.have_masks_alone(annotations):
        notes.append(AROUND_MASKS)
    return GroundTruth(**fields, **values, federated=federated, notes=tuple(notes))


def _by_lvis(values: dict, notes: list[str]) -> dict:
    """Columns of annotations as lvis reads them: crowds are objects, what has no area is none."""
    has_area = values["areas"] > 0
    if not has_area.all():
        notes.append(f"Annotations without area, left out as by LVIS: {(~has_area).sum()}.")
    masks = values["masks"]
    kept = {key: column[has_area] for key, column in values.items() if key != "masks"}
    kept["masks"] = masks and [masks[row] for row in np.flatnonzero(has_area)]
    return {**kept, "is_crowd": np.zeros_like(kept["is_crowd"])}


def _name_in_url(image: dict) -> str:
    """LVIS names the files of its images by their addresses alone: folder and file."""
    url = image.get("coco_url")
    return "/".join(str(url).split("/")[-2:]) if is_text(url) else ""


def _annotated(annotations: list, iou_type: str, fields: dict, source: str) -> dict:
    """The columns of annotations."""
    where = "annotations", source
    images = columns.indices(annotations, "image_id", fields["image_ids"], "images", *where)
    categories = columns.indices(
        annotations, "category_id", fields["category_ids"], "categories", *where
    )
    sizes = fields["sizes"][images]
    if columns.have_masks_alone(annotations):
        boxes = columns.boxes_around_masks(annotations, sizes, *where)
    else:
        boxes = columns.boxes(annotations, *where)
    ids = [annotation.get("id", index) for index, annotation in enumerate(annotations, 1)]
    check_unique_ids(ids, "annotations", source)
    return {
        "ids": np.array(ids),
        "images": images,
        "categories": categories,
        "boxes": boxes,
        "areas": columns.areas(annotations, *where),
        "is_crowd": columns.crowd_flags(annotations, *where),
        "masks": columns.annotated_masks(annotations, sizes, *where)
        if iou_type == "segm"
        else None,
    }


def detections_from_coco(
    content: Sequence[dict],
    ground_truth: GroundTruth,
    iou_type: str = "bbox",
    *,
    source: str = "the detections",
    check_values: bool = True,
    leave_out_other_classes: bool = False,
    skip_bad: bool = False,
) -> Detections:
    """Arrays of the content of a results file; an empty one is no error.

    Args:
        content: objects with image_id, category_id, score and bbox, or segmentation (run-length
            encoded) for "segm"; without any box, boxes are those around the masks.
        ground_truth: of the same data set.
        iou_type: "bbox" or "segm".
        source: where it is from, for messages.
        check_values: refuse scores and boxes that no detector should output.
        leave_out_other_classes: do so with rows of classes that the ground truth lacks, and note
            how many.
        skip_bad: leave out rows that cannot be used, and note how many.

    Raises:
        CocoFileError: not a list; a key is missing; an image or category is not in the ground
            truth; a score is not in [0, 1]; a box is not four finite numbers, or has a negative
            size; a mask is incomplete or has not the size of its image.
    """
    _check_iou_type(iou_type)
    if not isinstance(content, list):
        hint = ""
        if isinstance(content, dict) and "annotations" in content:
            hint = " (it looks like an annotation file: its annotations have no scores)"
        raise CocoFileError(
            f"{source}: expected a list of detections, got {describe(content)}{hint}"
        )
    values, notes = without_bad_rows(
        lambda rows: _found(
            rows, ground_truth, iou_type, source, check_values, leave_out_other_classes
        ),
        content,
        skip_bad=skip_bad,
    )
    if leave_out_other_classes and (values["categories"] < 0).any():
        values, note = _of_known_classes(**values)
        notes.append(note)
    values.pop("category_ids")
    if iou_type == "bbox" and columns.have_masks_alone(content):
        notes.append(AROUND_MASKS)
    return Detections(**values, notes=tuple(notes))


def _of_known_classes(category_ids: list, **values) -> tuple[dict, str]:
    """Columns without the rows of classes that the ground truth lacks, and a sentence on these."""
    is_known = values["categories"] >= 0
    absent = [category_ids[row] for row in np.flatnonzero(~is_known)]
    labels = [printable(str(label)) for label in dict.fromkeys(absent)]
    listed = ", ".join(labels[:MAX_NAMED]) + (", ..." if len(labels) > MAX_NAMED else "")
    kept: dict = {key: None if column is None else column[is_known]
                  for key, column in values.items() if key != "masks"}  # fmt: skip
    masks = values["masks"]
    kept["masks"] = masks and [masks[row] for row in np.flatnonzero(is_known)]
    return {**kept, "category_ids": None}, (
        f"{len(absent)} of {len(is_known)} rows are of classes that the ground truth lacks, and "
        f"are left out, as by COCO: {listed}."
    )


def _found(
    rows: list, gt: GroundTruth, iou_type: str, source: str, check: bool, any_class: bool
) -> dict:
    """The columns of detections."""
    where = "detections", source
    images = columns.indices(rows, "image_id", gt.image_ids, "images", *where)
    categories = columns.indices(
        rows, "category_id", gt.category_ids, "categories", *where, allow_unknown=any_class
    )
    sizes = gt.sizes[images]
    masks = None
    if iou_type == "bbox":
        if columns.have_masks_alone(rows):
            boxes = columns.boxes_around_masks(rows, sizes, *where)
        else:
            boxes = columns.boxes(rows, *where, check=check)
    scores = columns.scores(rows, *where, check=check)
    if iou_type == "bbox":
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        masks = columns.found_masks(rows, sizes, *where)
        areas = for_masks(mask_utils.area, masks, 1)[:, 0]
        # What the results say of boxes, if anything, is another head's.
        boxes = for_masks(mask_utils.toBbox, masks, 4)
    return {
        "images": images,
        "categories": categories,
        "scores": scores,
        "boxes": boxes,
        "areas": areas,
        "masks": masks,
        "category_ids": [row["category_id"] for row in rows] if (categories < 0).any() else None,
    }


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
