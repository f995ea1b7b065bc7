"""Where to cut off: precision, recall and F1 against the score, with a slider."""

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from corrdet.measures.operating import GRID

from . import svg
from .html import cell, figure, legend, number, number_table, scroll

CURVES = ("precision", "recall", "F1")
HEAD = ("score", "precision", "recall", "F1", "LRP")


def chapter(entries: Sequence[Mapping]) -> str:
    rows, figures = [], []
    for series, entry in enumerate(entries):
        points = entry["operating_points"]
        for key, title in (("best_F1", "F1"), ("best_LRP", "oLRP")):
            point = points[key]
            if point is None:
                continue
            values = "".join(
                cell(number(point[k])) for k in ("threshold", "precision", "recall", "f1", "lrp")
            )
            name = f"{escape(entry['name'])}, " if len(entries) > 1 else ""
            rows.append(f'<tr><th scope="row">{name}best {title}</th>{values}</tr>')
        if points["best_F1"] is None:
            continue
        curves = [np.array(points["curves"][key], dtype=float) for key in CURVES]
        name = f"operating-{series}"
        best = points["best_F1"]
        alternative = (
            f"Precision, recall and F1 of {entry['name']} against the score threshold. The best F1 "
            f"is {number(best['f1'])} percent at a threshold of {number(best['threshold'])}, with "
            f"a precision of {number(best['precision'])} and a recall of {number(best['recall'])}."
        )
        numbers = number_table(
            "Operating points in percent",
            "threshold",
            [f"{threshold:.2f}" for threshold in GRID[::5]],
            {key: curve[::5] for key, curve in zip(CURVES, curves, strict=True)},
        )
        caption = f"<strong>{escape(entry['name'])}</strong>, all classes together, IoU 0.5."
        drawing = svg.operating_curves(curves, best["threshold"], name)
        figures.append(figure(name, drawing, alternative, caption, numbers))
    if not rows:
        return "<p>No detection of a class with objects: nothing to cut off.</p>"
    table = scroll(
        "Best thresholds",
        '<table><thead><tr><th scope="col">point</th>'
        + "".join(
            f'<th scope="col">{k}</th>' for k in ("score", "precision", "recall", "F1", "LRP")
        )
        + f"</tr></thead>\n<tbody>{''.join(rows)}</tbody></table>",
    )
    return (
        "<p>A threshold keeps the detections with at least its score. F1 weighs false and missed "
        "objects alike; LRP counts badly placed boxes, too (lower is better). The thresholds of "
        "each class are in the table of classes.</p>\n"
        f'{table}\n{_slider(entries)}\n{legend(CURVES)}<div class="figures">\n'
        + "\n".join(figures)
        + "\n</div>"
    )


def _slider(entries: Sequence[Mapping]) -> str:
    """Hidden until the script runs."""
    data = [
        {
            "name": entry["name"],
            "curves": {
                key: [None if value is None else round(value, 2) for value in values]
                for key, values in entry["operating_points"]["curves"].items()
            },
        }
        for entry in entries
    ]
    best = next(filter(None, (entry["operating_points"]["best_F1"] for entry in entries)), None)
    start = round(100 * best["threshold"]) if best else 50
    return (
        f'<div class="operating filter" data-points="{escape(json.dumps(data))}" hidden>'
        '<label for="operating-slider">Score threshold</label>'
        f'<input id="operating-slider" type="range" min="0" max="100" value="{start}">'
        '<output for="operating-slider" aria-live="polite"></output></div>'
    )
