"""What a COCO file may leave out, filled in once for everybody who reads it.

The rules: ``iscrowd`` is 0, and ``area`` is that of the mask, or without a mask of the box. Ids
that some writers make floating-point numbers, such as 3.0, are whole numbers.
"""

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from .masks import MaskError, check_encodings, encode
from .rules import LISTS, is_box, is_number

ID_KEYS = {
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}


def with_whole_ids(content: Any) -> Any:
    """The content of a file with ids such as 3.0 as 3; it is changed, whatever else is wrong."""
    for part in LISTS:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            continue
        for key in ID_KEYS[part]:
            for row in rows:
                if isinstance(row, dict):
                    value = row.get(key)
                    if type(value) is float and value.is_integer():
                        row[key] = int(value)
    return content


def results_with_whole_ids(rows: Any) -> Any:
    """The same for the rows of a results file."""
    return with_whole_ids({"annotations": rows})["annotations"]


def completed(content: dict) -> dict:
    """The content with ``iscrowd`` and ``area`` in each annotation.

    What is complete or cannot be completed is the same object as in ``content``, which is not
    changed.
    """
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or all(map(_is_complete, annotations)):
        return content
    images = content.get("images")
    sizes = {
        image["id"]: _size(image)
        for image in (images if isinstance(images, list) else ())
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    rows = [row if _is_complete(row) else _completed_row(row, sizes) for row in annotations]
    return {**content, "annotations": rows}


def _is_complete(row: Any) -> bool:
    return not isinstance(row, dict) or (
        row.get("iscrowd") is not None and row.get("area") is not None
    )


def _completed_row(row: dict, sizes: dict) -> dict:
    row = dict(row)
    if row.get("iscrowd") is None:
        row["iscrowd"] = 0
    if row.get("area") is None:
        row.pop("area", None)
        try:
            size = sizes.get(row.get("image_id"), (0, 0))
        except TypeError:  # what is wrong with the id is for others to say
            size = (0, 0)
        area = _mask_area(row.get("segmentation"), size)
        if area is None and is_box(row.get("bbox")):
            area = float(row["bbox"][2]) * float(row["bbox"][3])
        if area is not None:
            row["area"] = area
    return row


def _size(image: dict) -> tuple[int, int]:
    sides: list[Any] = [image.get("width"), image.get("height")]
    if not all(is_number(side) and 0 < side < 1e6 for side in sides):
        return 0, 0
    width, height = map(int, sides)
    return width, height


def _mask_area(segmentation: Any, size: tuple[int, int]) -> float | None:
    """None where there is no mask, or none that is one."""
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | bytes):
            mask = segmentation
        else:
            mask = encode(0, segmentation, size)
        check_encodings([mask], np.array([size]))
    except MaskError:
        return None
    return float(mask_utils.area(mask))
