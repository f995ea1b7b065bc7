"""Pieces of HTML that chapters are made of: numbers, tables, figures."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from corrdet.measures import Results
from corrdet.measures.bootstrap import SIGNIFICANT
from corrdet.measures.matching import IOU_THRESHOLDS

from . import svg

UNDEFINED = "n.d."


def number(value: float | None, sign: str = "", digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if isinstance(value, int):
        return f"{value:{sign}d}"
    return f"{value:{sign}.{digits}f}"


def interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    if bounds is None:
        return ""
    return f"[{number(bounds[0], sign)}, {number(bounds[1], sign)}]"


def is_significant(entry: Mapping, key: str) -> bool:
    """Whether a file's difference from the first is more than chance, after Holm's correction."""
    p = entry.get("bootstrap", {}).get("p_values", {}).get(key)
    return p is not None and p < SIGNIFICANT


def breakable(name: str) -> str:
    """A name as HTML that may go on in the next line at an underscore or a slash."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def cell(value: str, interval: str = "") -> str:
    return f"<td>{value}{f'<span class=interval>{interval}</span>' if interval else ''}</td>"


def scroll(label: str, content: str, *, tall: bool = False) -> str:
    """A box that scrolls for itself, by keyboard too."""
    return (
        f'<div class="scroll{" tall" if tall else ""}" role="region" tabindex="0" '
        f'aria-label="{escape(label)}, table">{content}</div>'
    )


def undefined_note() -> str:
    return (
        f'<p class="note">{UNDEFINED}: not defined. A class without objects has no AP and no '
        "oLRP; without a correct detection there is no Loc, FP or threshold; a correlation needs "
        "two detections with different scores and different IoUs. Such values are left out of "
        "means.</p>"
    )


def figure(
    name: str,
    drawing: str,
    alternative: str,
    caption: str,
    numbers: str = "",
    *,
    is_alone: bool = False,
) -> str:
    """A drawing with a text alternative, a caption and, folded up, the numbers behind it.

    Where it stands alone and the page is wide, the caption is beside it.
    """
    layout = ' class="beside"' if is_alone else ""
    folded = f"<details><summary>The numbers</summary>{numbers}</details>" if numbers else ""
    return (
        f'<figure id="{name}"{layout}><div class="drawing" role="img" '
        f'aria-label="{escape(alternative)}">{drawing}</div>\n'
        f"<figcaption>{caption}{folded}</figcaption></figure>"
    )


def legend(names: Sequence[str]) -> str:
    items = "".join(
        f"<li>{svg.swatch(series)}{escape(name)}</li>" for series, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def number_table(
    label: str, first: str, rows: Sequence[str], columns: Mapping[str, Sequence[float]]
) -> str:
    """A table of a figure's numbers: a row for each of ``rows``, columns by name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{row}</th>'
        + "".join(f"<td>{number(float(values[index]))}</td>" for values in columns.values())
        + "</tr>\n"
        for index, row in enumerate(rows)
    )
    return scroll(
        label,
        f'<table><thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>",
    )


def from_to(name: str, values: np.ndarray, what: str) -> str:
    """First and last defined value, for the text alternative of a curve."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return f"{name}: {what} is not defined."
    return f"{name}: {what} goes from {number(defined[0])} to {number(defined[-1])}."


def names_of(results: Sequence[Results]) -> list[str]:
    return [result.name for result in results]


def no_detection(results: Sequence[Results]) -> str:
    """A sentence about the files without detections."""
    empty = [escape(result.name) for result in results if not len(result.matches.scores)]
    if not empty:
        return ""
    return f"<p>No detection in {', '.join(empty)}: nothing to draw.</p>\n"


def thresholds() -> list[str]:
    return [f"{threshold:.2f}" for threshold in IOU_THRESHOLDS]


def mean_over_classes(precision: np.ndarray) -> np.ndarray:
    """(T, C, ...) -> (T, ...); NaN where no class has ground truth."""
    defined = np.isfinite(precision).all(axis=tuple(i for i in range(precision.ndim) if i != 1))
    return precision[:, defined].mean(axis=1) if defined.any() else precision.mean(axis=1)
