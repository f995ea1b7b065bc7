"""Columns of annotations and results: a key of every row as an array, checked.

All rows are looked at together, by their few types; single ones only when something is wrong, so
that a million rows take a second.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from .masks import MAX_REACH, MaskError, are_drawable, check_encodings, check_polygon, encode
from .messages import describe, short
from .polygons import Outlines, is_packed
from .rules import (
    MAX_COORDINATE,
    are_numbers,
    is_box,
    is_crowd_flag,
    is_number,
    row_error,
)

# Scores in float32 may be rounded to just above 1.
SCORE_TOLERANCE = 1e-6
# Of annotations whose polygons are looked at together.
ROWS = 10_000


def indices(
    rows: list,
    key: str,
    known: list,
    name: str,
    what: str,
    source: str,
    *,
    allow_unknown: bool = False,
) -> np.ndarray:
    """(n,) where the value of each row is among the ids that are known.

    Args:
        rows: n objects.
        key: image_id or category_id.
        known: ids.
        name: what they are of, for messages.
        what: the name of the list of rows, for messages.
        source: where it is from, for messages.
        allow_unknown: other ids are -1.

    Raises:
        RowError: a row has no such id, or another one.
    """
    rows_by_id = {value: index for index, value in enumerate(known)}
    try:
        values = [row[key] for row in rows]
        column = np.fromiter((rows_by_id.get(value, -1) for value in values), np.int64, len(rows))
        # True is 1 for a dict.
        is_bad = bool in set(map(type, values))
    except (KeyError, TypeError, AttributeError):
        is_bad = True
    if is_bad:
        bad = _where(rows, lambda row: isinstance(row, dict) and _is_id_like(row.get(key)))
        row = rows[bad[0]]
        if isinstance(row, dict) and key in row:
            expected, came = f"a number or a text under {key}", row[key]
        else:
            expected, came = f"an object with {key}", row
        raise row_error(source, what, bad, key, f"expected {expected}, got {describe(came)}")
    unknown = np.flatnonzero(column < 0)
    if len(unknown) and not allow_unknown:
        are_others = len(unknown) == len(rows) > 1 and name == "images"
        hint = ": are these results of another image set?" if are_others else ""
        raise row_error(
            source,
            what,
            unknown.tolist(),
            key,
            f"expected {key} to be of the {len(known)} {name} of the ground truth, got "
            f"{short(rows[unknown[0]][key])}{hint}",
        )
    return column


def boxes(rows: list, what: str, source: str, *, check: bool = True) -> np.ndarray:
    """(n, 4) XYWH.

    Raises:
        RowError: a box is not four finite numbers, or has a negative size.
    """
    try:
        given = [row["bbox"] for row in rows]
        if not set(map(type, given)) <= {list, tuple} or not set(map(len, given)) <= {4}:
            raise ValueError
        sides = list(itertools.chain.from_iterable(given))
        if not are_numbers(sides):
            raise ValueError
        values = np.fromiter(sides, np.float64, 4 * len(rows)).reshape(-1, 4)
    except (KeyError, TypeError, ValueError, OverflowError):
        bad = _where(rows, lambda row: is_box(row.get("bbox")))
        came = describe(rows[bad[0]].get("bbox"))
        reason = f"expected four numbers under bbox, got {came}"
        raise row_error(source, what, bad, "bbox", reason) from None
    if check:
        is_finite = np.all(np.abs(values) <= MAX_COORDINATE, axis=1)
        bad = np.flatnonzero(~is_finite | (values[:, 2] < 0) | (values[:, 3] < 0)).tolist()
        if bad:
            expected = "no negative width or height" if is_finite[bad[0]] else "finite numbers"
            came = values[bad[0]].tolist()
            raise row_error(source, what, bad, "bbox", f"expected {expected} in bbox, got {came}")
    return values


def have_masks_alone(rows: list) -> bool:
    """Whether rows have segmentations, and none of them a box."""
    first = rows[0] if rows and isinstance(rows[0], dict) else {}
    if first.get("bbox") or not first.get("segmentation"):
        return False
    return not any(isinstance(row, dict) and row.get("bbox") for row in rows)


def boxes_around_masks(rows: list, sizes: np.ndarray, what: str, source: str) -> np.ndarray:
    """(n, 4) XYWH around the segmentations: the extent of polygons, the pixels of run lengths.

    Args:
        rows: n objects.
        sizes: (n, 2) of their images.
        what: the name of the list of rows, for messages.
        source: where it is from, for messages.

    Raises:
        RowError: a row has no mask.
    """
    values = np.zeros((len(rows), 4))
    bad, reasons = [], []
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        try:
            values[index] = _box_around(row.get("segmentation"), size)
        except MaskError as error:
            bad.append(index)
            reasons.append(error.reason)
    if bad:
        raise row_error(source, what, bad, "segmentation", reasons[0])
    return values


def _box_around(segmentation, size: np.ndarray) -> np.ndarray:
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            check_polygon(0, polygon, MAX_REACH * max(size) if size.all() else MAX_COORDINATE)
        points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in segmentation])
        low, high = points.min(axis=0), points.max(axis=0)
        return np.concatenate([low, high - low])
    if not isinstance(segmentation, dict) or isinstance(segmentation.get("counts"), list):
        segmentation = encode(0, segmentation, size)
    check_encodings([segmentation], size[None])
    return np.asarray(mask_utils.toBbox(segmentation), dtype=np.float64)


def numbers_of(rows: list, key: str, what: str, source: str) -> np.ndarray:
    """(n,) numbers, which may be NaN.

    Raises:
        RowError: a row has none.
    """
    values = [row.get(key) for row in rows]
    try:
        if not are_numbers(values):
            raise ValueError
        return np.array(values, dtype=np.float64)
    except (ValueError, OverflowError):
        bad = _where(rows, lambda row: is_number(row.get(key)))
        reason = f"expected a number under {key}, got {describe(values[bad[0]])}"
        raise row_error(source, what, bad, key, reason) from None


def scores(rows: list, what: str, source: str, *, check: bool = True) -> np.ndarray:
    """(n,) scores.

    Raises:
        RowError: one is not a number, or not in [0, 1].
    """
    values = numbers_of(rows, "score", what, source)
    if check:
        # Negated, so that NaN is bad as well.
        bad = np.flatnonzero(~((values >= 0) & (values <= 1 + SCORE_TOLERANCE))).tolist()
        if bad:
            reason = f"expected a score in [0, 1], got {values[bad[0]]}"
            raise row_error(source, what, bad, "score", reason)
    return values


def areas(rows: list, what: str, source: str) -> np.ndarray:
    """(n,) areas in square pixels.

    Raises:
        RowError: one is not a finite number, or negative.
    """
    values = numbers_of(rows, "area", what, source)
    # Negated, so that NaN is bad as well.
    bad = np.flatnonzero(~((values >= 0) & np.isfinite(values))).tolist()
    if bad:
        reason = f"expected a finite area, not negative, got {values[bad[0]]}"
        raise row_error(source, what, bad, "area", reason)
    return values


def crowd_flags(rows: list, what: str, source: str) -> np.ndarray:
    """(n,) bool.

    Raises:
        RowError: one is neither 0 nor 1.
    """
    flags = [row.get("iscrowd") for row in rows]
    bad = [index for index, flag in enumerate(flags) if not is_crowd_flag(flag)]
    if bad:
        reason = f"expected iscrowd to be 0 or 1, got {describe(flags[bad[0]])}"
        raise row_error(source, what, bad, "iscrowd", reason)
    return np.array([bool(flag) for flag in flags], dtype=bool)


def check_annotated_masks(rows: list[dict], sizes: np.ndarray, what: str, source: str) -> None:
    """Whether masks can be compared; what is sure to be is not encoded, which takes long.

    Raises:
        RowError: see :func:`annotated_masks`.
    """
    are_good = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), ROWS):
        packed = [
            index
            for index in range(start, min(start + ROWS, len(rows)))
            if is_packed(rows[index].get("segmentation"))
        ]
        if packed:
            outlines = Outlines([rows[index]["segmentation"] for index in packed])
            are_good[packed] = are_drawable(outlines, sizes[packed])
    annotated_masks(rows, sizes, what, source, np.flatnonzero(~are_good))


def annotated_masks(
    rows: list[dict],
    sizes: np.ndarray,
    what: str,
    source: str,
    only: Sequence[int] | np.ndarray | None = None,
) -> list[dict]:
    """Run-length encodings of polygons, and of masks with or without compression.

    ``only``: indices of the rows whose masks are asked for.

    Raises:
        RowError: a row has none.
    """

    def encoded(index: int) -> dict:
        mask = rows[index].get("segmentation")
        if isinstance(mask, dict) and isinstance(mask.get("counts"), str | bytes):
            return mask
        return encode(index, mask, sizes[index])

    def named(index: int, reason: str) -> str:
        row = rows[index]
        return f"{reason} (id {row.get('id')}, image_id {row['image_id']})"

    wanted = range(len(rows)) if only is None else only
    return _masks(wanted, encoded, sizes[wanted], what, source, named)


def found_masks(rows: list[dict], sizes: np.ndarray, what: str, source: str) -> list[dict]:
    """Compressed run-length encodings of detections.

    Raises:
        RowError: a row has none.
    """
    given = [row.get("segmentation") for row in rows]
    everything = range(len(rows))
    return _masks(everything, given.__getitem__, sizes, what, source, lambda _, reason: reason)


def _masks(
    rows: Sequence[int] | np.ndarray,
    encoded: Callable[[int], Any],
    sizes: np.ndarray,
    what: str,
    source: str,
    named: Callable[[int, str], str],
) -> list[dict]:
    try:
        masks = [encoded(row) for row in rows]
        check_encodings(masks, sizes)
        return masks
    except MaskError:
        pass
    bad, reasons = [], []
    for row, size in zip(rows, sizes, strict=True):
        try:
            check_encodings([encoded(row)], size[None])
        except MaskError as error:
            bad.append(row)
            reasons.append(error.reason)
    raise row_error(source, what, bad, "segmentation", named(bad[0], reasons[0]))


def _is_id_like(value) -> bool:
    return is_number(value) or isinstance(value, str)


def _where(rows: Sequence, is_good: Callable) -> list[int]:
    """Rows of which something does not hold, or that are no objects."""
    return [
        index for index, row in enumerate(rows) if not isinstance(row, dict) or not is_good(row)
    ]
