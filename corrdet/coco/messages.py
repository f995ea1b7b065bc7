"""How messages show what came, and lists of what is wrong: short, on lines of their own."""

import math
from collections.abc import Sequence
from typing import Any

from corrdet.names import kind_of

MAX_LISTED = 10


def short(value: Any, limit: int = 80) -> str:
    """A text of at most ``limit`` characters, on one line."""
    if hasattr(value, "tolist"):  # an array, of a polygon
        value = value.tolist()
    try:
        text = "nothing" if value is None else repr(value)
    except RecursionError:
        text = f"{kind_of(value)} in which others are, too deep to be shown"
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = f"{kind_of(value)} of thousands of digits"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe(value: Any) -> str:
    """:func:`short`, with the type."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return f"{type(value).__name__} {short(value, 100)}"


def listing(
    problems: Sequence[str], total: int | None = None, limit: int | None = MAX_LISTED
) -> str:
    """The first ``limit``, a line each, and how many more there are of ``total``, by default all.

    Without a limit, all of them.
    """
    lines = [f"  {problem}" for problem in problems[:limit]]
    more = (len(problems) if total is None else total) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def printable(text: str) -> str:
    """What a terminal and a page can show as it is: other characters as Python escapes them.

    Those are control characters, which terminals obey, and halves of pairs, which UTF-8 has not.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
