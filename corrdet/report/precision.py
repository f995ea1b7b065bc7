"""Precision against recall."""

from collections.abc import Sequence
from html import escape

import numpy as np

from corrdet.measures import Results
from corrdet.measures.matching import IOU_THRESHOLDS
from corrdet.measures.results import mean_of_defined

from . import svg
from .html import figure, legend, mean_over_classes, names_of, number, number_table

PR_THRESHOLDS = (50, 75, 90)


def chapter(results: Sequence[Results]) -> str:
    figures = []
    for percent in PR_THRESHOLDS:
        row = int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, percent / 100))[0])
        curves = [100 * mean_over_classes(result.precision)[row] for result in results]
        name = f"precision-{percent}"
        areas = [mean_of_defined(curve) for curve in curves]
        alternative = f"Precision against recall at IoU {percent / 100:.2f}. " + " ".join(
            f"{label}: mean precision {number(area)}, {number(float(curve[50]))} at a recall of "
            "50 percent."
            for label, area, curve in zip(names_of(results), areas, curves, strict=True)
        )
        said = ", ".join(
            f"{escape(label)} {number(area)}"
            for label, area in zip(names_of(results), areas, strict=True)
        )
        caption = f"<strong>IoU of at least {percent / 100:.2f}.</strong> AP{percent}: {said}."
        recalls = range(0, 101, 10)
        numbers = number_table(
            f"Precision in percent at IoU {percent / 100:.2f}",
            "recall (%)",
            list(map(str, recalls)),
            {label: curve[::10] for label, curve in zip(names_of(results), curves, strict=True)},
        )
        drawing = svg.precision_curves(curves, name)
        figures.append(figure(name, drawing, alternative, caption, numbers))
    return (
        "<p>Taking detections from the highest score down, more and more objects are found "
        "(recall), and more and more of the detections are wrong (precision falls). The mean over "
        "classes; the area under the curve is the AP. A curve that begins low at a high IoU has "
        "badly placed boxes among the highest scores. Where it ends, the rest of the objects is "
        f'not found.</p>\n{legend(names_of(results))}<div class="figures small">\n'
        + "\n".join(figures)
        + "\n</div>"
    )
