"""What COCO's format asks of a file and of a row, each rule once.

Who reads a whole file asks for all rows at once and looks at single ones only when something is
wrong, so rules for single values are plain functions of them.
"""

import numbers
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from corrdet.errors import CorrdetError

from .messages import describe

# Pixels by which a box may overhang its image. COCO's own annotations overhang by fractions of a
# pixel, and converters that are off by one, or by one on each side, are common; such boxes are
# clipped.
OVERHANG_TOLERANCE = 2.0
LISTS = ("images", "annotations", "categories")
# Larger coordinates are no pixels, and their areas no numbers to calculate with.
MAX_COORDINATE = 1e9
# Of an image; slides of microscopes have some hundred thousand pixels a side.
MAX_SIDE = 1_000_000


class AnnotationError(CorrdetError, ValueError):
    """Annotations that cannot be used; the message names the first of them."""


class CocoFileError(AnnotationError):
    """A file is not what COCO's format has; the message names file, row and reason."""


class RowError(CocoFileError):
    """Rows of a list are not what they should be, all for one reason.

    Attributes:
        rows: all of them, ascending; the message names the first.
        key: under which it is.
        reason: of the first: what was expected, and what came.
    """

    def __init__(self, message: str, *, rows: Sequence[int] = (), key: str = "", reason: str = ""):
        super().__init__(message)
        self.rows, self.key, self.reason = rows, key, reason


def row_error(source: str, what: str, rows: Sequence[int], key: str, reason: str) -> RowError:
    """The error of rows of ``what``, of which there is at least one."""
    more = f" (and {len(rows) - 1} more such rows)" if len(rows) > 1 else ""
    return RowError(
        f"{source}: {what}[{rows[0]}]: {reason}{more}", rows=rows, key=key, reason=reason
    )


def lists_of(content: Any, source: str) -> tuple[list, list, list]:
    """Images, annotations and categories of the content of an annotation file.

    Raises:
        CocoFileError: it is not an object with these three lists.
    """
    if not isinstance(content, dict):
        raise CocoFileError(
            f"{source}: expected an object with the lists images, annotations and categories, got "
            f"{describe(content)}"
        )
    for part in LISTS:
        if not isinstance(content.get(part), list):
            raise CocoFileError(
                f"{source}: expected a list {part!r}, got {describe(content.get(part))}"
            )
    return tuple(content[part] for part in LISTS)


def check_unique_ids(ids: list, what: str, source: str) -> None:
    """Whether each row of ``what`` has an id of its own.

    Raises:
        CocoFileError: names the first row that has none.
    """
    if not set(map(type, ids)) <= {int, str}:
        bad = [index for index, value in enumerate(ids) if not is_id(value)]
        if bad:
            came = describe(ids[bad[0]])
            reason = f"expected a whole number or a text as id, got {came}"
            raise row_error(source, what, bad, "id", reason)
    if len(set(ids)) != len(ids):
        seen: dict[int | str, int] = {}
        again = [i for i, value in enumerate(ids) if seen.setdefault(value, i) != i]
        value = ids[again[0]]
        reason = f"expected an id of its own, got {value!r}, that of {what}[{seen[value]}]"
        raise row_error(source, what, again, "id", reason)


def is_id(value: Any) -> bool:
    """Of an image, category or annotation: a whole number or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A real number, which may be NaN; no bool, and no integer that is none in floating point."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1024
    return isinstance(value, numbers.Real)


def is_side(value: Any) -> bool:
    """Of an image: a whole number of pixels, at least one and at most MAX_SIDE."""
    return is_number(value) and 1 <= value <= MAX_SIDE and float(value).is_integer()


def are_numbers(values: Iterable) -> bool:
    """As :func:`is_number` of each, by their few types; integers of any length."""
    return all(issubclass(t, numbers.Real) and t is not bool for t in set(map(type, values)))


def is_box(value: Any) -> bool:
    """Four numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value))


def side_words(key: str) -> str:
    """What :func:`is_side` expects as width or height."""
    return f"a whole number of pixels as {key}, at most {MAX_SIDE}"


def is_text(value: Any) -> bool:
    """Of a class or a file: a text that is not empty, of one line."""
    return isinstance(value, str) and bool(value.strip()) and not {*value} & {"\0", "\n", "\r"}


def is_crowd_flag(value: Any) -> bool:
    """0, 1 or nothing, which is 0."""
    return value is None or (isinstance(value, int | float) and value in (0, 1))


def has_corners(polygon: Sized) -> bool:
    """Whether a list can be x1, y1, x2, y2, ... of at least three points, by its length."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0
