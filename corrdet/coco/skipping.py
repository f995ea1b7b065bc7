"""Rows that cannot be used: left out and counted, or an error."""

from collections.abc import Callable
from typing import TypeVar

from .rules import RowError

T = TypeVar("T")


def without_bad_rows(
    build: Callable[[list], T], rows: list, *, skip_bad: bool
) -> tuple[T, list[str]]:
    """What is built of rows, and a sentence on those that are left out.

    Args:
        build: raises a RowError that names all rows that are bad for one reason.
        rows: to build from.
        skip_bad: build without them.

    Raises:
        RowError: a row is bad, and is not to be left out.
    """
    kept = list(range(len(rows)))
    found = rows
    # Key -> how many, and the first of them.
    reasons: dict[str, tuple[int, str]] = {}
    while True:
        try:
            built = build(found)
        except RowError as error:
            if not skip_bad:
                raise
            count, first = reasons.get(error.key, (0, ""))
            first = first or f"row {kept[error.rows[0]]}: {error.reason}"
            reasons[error.key] = count + len(error.rows), first
            bad = set(error.rows)
            kept = [row for index, row in enumerate(kept) if index not in bad]
            found = [rows[row] for row in kept]
            continue
        if not reasons:
            return built, []
        parts = [f"{key}: {count}, the first {first}" for key, (count, first) in reasons.items()]
        total = len(rows) - len(kept)
        return built, [
            f"{total} of {len(rows)} rows cannot be used and are left out: {'; '.join(parts)}."
        ]
