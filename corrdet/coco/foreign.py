"""Results as other frameworks write them, as rows of COCO's format.

- lists in an object, under annotations, results, predictions or detections;
- torchvision: for each image boxes (x1, y1, x2, y2), scores and labels, in a list or by image;
- Hugging Face: score, label and a box of xmin, ymin, xmax, ymax;
- ultralytics: ``image_id`` that is a file's stem, or confidence, class, name and a box of x1 ...;
- numbers as text, and classes by name.

What an image is called in them is the matter of :mod:`~corrdet.coco.naming`.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from .arrays import GroundTruth
from .messages import short
from .naming import FILE_KEYS, with_image_ids
from .rules import CocoFileError, is_number

FORMATS = ("auto", "coco", "xyxy")
NESTING = ("annotations", "results", "predictions", "detections")
SCORE_KEYS = ("score", "confidence", "conf")
BOX_LISTS = ("boxes", "bboxes")
NAME_KEYS = ("category_name", "class_name", "label", "name", "category", "class")
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))


def as_coco_rows(
    content: Any, ground_truth: GroundTruth, form: str = "auto", *, source: str = "the detections"
) -> tuple[Any, list[str]]:
    """The content of a results file as COCO's rows, as far as they are recognised.

    Args:
        content: what was read; it is not changed.
        ground_truth: whose ids the rows get.
        form: "auto"; or "xyxy" where boxes of flat rows are x1, y1, x2, y2.
        source: where it is from, for messages.

    Returns:
        rows, and sentences on what was taken for what.

    Raises:
        CocoFileError: boxes, scores and labels of an image are not of one number.
    """
    notes: list[str] = []
    content = _unnested(content, notes)
    if isinstance(content, Mapping):
        if not _is_by_image(content):
            return content, notes
        content = [
            {"image_id": key, **row}
            for key, part in content.items()
            for row in ([part] if isinstance(part, Mapping) else part)
        ]
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        return content, notes
    rows = [dict(row) for row in content]
    if any(_box_list(row) is not None for row in rows):
        rows = list(itertools.chain.from_iterable(_flat(row, source) for row in rows))
        notes.append("Boxes of each image are taken as x1, y1, x2, y2, as torchvision has them.")
    rows = [_with_known_keys(row, notes) for row in rows]
    if form == "xyxy":
        rows = [_from_corners(row) for row in rows]
        notes.append("Boxes are read as x1, y1, x2, y2.")
    if any([_read_numbers(row) for row in rows]):
        notes.append("Numbers that are written as text are read as numbers.")
    rows, image_notes = with_image_ids(rows, ground_truth)
    rows, class_notes = _with_class_ids(rows, ground_truth)
    return rows, list(dict.fromkeys([*notes, *image_notes, *class_notes]))


def _unnested(content: Any, notes: list[str]) -> Any:
    """The list in an object; its rows have scores, else it is an annotation file."""
    if not isinstance(content, Mapping):
        return content
    for key in NESTING:
        rows = content.get(key)
        if isinstance(rows, list) and (key != "annotations" or _have_scores(rows)):
            notes.append(f"The results are the list under {key}.")
            return rows
    return content


def _have_scores(rows: list) -> bool:
    return any(isinstance(row, Mapping) and _first(row, SCORE_KEYS) is not None for row in rows)


def _is_by_image(content: Mapping) -> bool:
    """Image -> its boxes, or its detections."""
    return any(content.values()) and all(
        _box_list(part) is not None
        if isinstance(part, Mapping)
        else isinstance(part, list) and all(_have_scores([row]) for row in part)
        for part in content.values()
    )


def _box_list(row: Mapping) -> list | None:
    boxes = _first(row, BOX_LISTS)
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    return boxes if isinstance(boxes, list) else None


def _flat(row: Mapping, source: str) -> Iterator[dict]:
    """A row for each box of an image."""
    boxes = _box_list(row)
    if boxes is None:
        yield dict(row)
        return
    columns: dict[str, Any] = {
        "scores": _listed(row, ("scores",)),
        "labels": _listed(row, ("labels", "classes")),
    }
    for key, values in columns.items():
        if values is None or len(values) != len(boxes):
            came = "none" if values is None else str(len(values))
            image = short(_first(row, ("image_id", *FILE_KEYS)))
            raise CocoFileError(
                f"{source}: image {image}: expected as many {key} as boxes, {len(boxes)}, got "
                f"{came}"
            )
    place = {key: row[key] for key in ("image_id", *FILE_KEYS) if key in row}
    for box, score, label in zip(boxes, *columns.values(), strict=True):
        key = "category_name" if isinstance(label, str) else "category_id"
        yield _from_corners({**place, key: label, "score": score, "bbox": box})


def _listed(row: Mapping, keys: tuple[str, ...]) -> list | None:
    values = _first(row, keys)
    values = values.tolist() if hasattr(values, "tolist") else values
    return values if isinstance(values, list) else None


def _with_known_keys(row: dict, notes: list[str]) -> dict:
    """Score, box and class under COCO's keys."""
    if "score" not in row and (score := _first(row, SCORE_KEYS)) is not None:
        row["score"] = score
    box = row.get("box")
    if "bbox" not in row and isinstance(box, Mapping):
        for names in CORNERS:
            if all(name in box for name in names):
                row = _from_corners({**row, "bbox": [box[name] for name in names]})
                notes.append(f"Boxes are read from their {', '.join(names)}.")
    if "category_id" not in row:
        label = next((row[k] for k in NAME_KEYS if isinstance(row.get(k), str)), None)
        if label is not None:
            row["category_name"] = label
        elif (label := _first(row, ("label", "class"))) is not None:
            row["category_id"] = label
    return row


def _from_corners(row: dict) -> dict:
    box = row.get("bbox")
    if isinstance(box, list | tuple) and len(box) == 4:
        corners = [_number(side) for side in box]
        if all(map(is_number, corners)):
            x1, y1, x2, y2 = corners
            return {**row, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    return row


def _read_numbers(row: dict) -> bool:
    """Whether a score or a box was written as text."""
    is_read = False
    if isinstance(row.get("score"), str):
        row["score"] = _number(row["score"])
        is_read = True
    box = row.get("bbox")
    if isinstance(box, list | tuple) and any(isinstance(side, str) for side in box):
        row["bbox"] = [_number(side) for side in box]
        is_read = True
    return is_read


def _number(value: Any) -> Any:
    """A number that is written as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _with_class_ids(rows: list[dict], gt: GroundTruth) -> tuple[list[dict], list[str]]:
    """Classes by the ids of the ground truth, where it has them."""
    known: dict[Any, Any] = {identity: identity for identity in gt.category_ids}
    as_text = {str(identity): identity for identity in gt.category_ids}
    by_name = {
        name: identity
        for name, identity in zip(gt.category_names, gt.category_ids, strict=True)
        if gt.category_names.count(name) == 1
    }
    named = 0
    for row in rows:
        label = row.get("category_id", row.get("category_name"))
        if not isinstance(label, int | str) or isinstance(label, bool):
            continue
        identity = known.get(label, as_text.get(str(label).strip()))
        if identity is None and isinstance(label, str):
            identity = by_name.get(label)
            named += identity is not None
        row["category_id"] = label if identity is None else identity
    return rows, [f"Classes of {named} rows are matched by name."] if named else []


def _first(row: Mapping, keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)
