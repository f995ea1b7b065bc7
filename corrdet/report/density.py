"""Score against IoU of all detections."""

from collections.abc import Sequence
from html import escape

import numpy as np

from corrdet.measures import Results

from . import svg
from .html import figure, no_detection, number


def chapter(results: Sequence[Results]) -> str:
    figures = []
    most = max(
        (svg.cell_counts(result.matches.scores, result.matches.best_ious).max()
         for result in results if len(result.matches.scores) > svg.MAX_DOTS),
        default=0,
    )  # fmt: skip
    steps = [count for count in svg.DENSITY_LEVELS if count <= most]
    for series, result in enumerate(results):
        scores, ious = result.matches.scores, result.matches.best_ious
        if not len(scores):
            continue
        share = 100 * float((ious > 0.5).mean())
        coefficients = ", ".join(f"{k} {number(result.measures[k])}" for k in ("PCC", "SCC"))
        drawn = "each a dot" if len(scores) <= svg.MAX_DOTS else "the darker, the more"
        alternative = (
            f"Score against IoU of {len(scores)} detections of {result.name}. {share:.1f} percent "
            f"have an IoU above 0.5; over these, {coefficients} percent. Median score "
            f"{np.median(scores):.2f}, median IoU {np.median(ious):.2f}."
        )
        caption = (
            f"<strong>{escape(result.name)}</strong>: {len(scores)} detections, {drawn}. "
            f"{share:.1f} % have an IoU above 0.5 (right of the dotted line); over these, "
            f"{coefficients}."
        )
        name = f"density-{series}"
        drawing = svg.density(scores, ious, name, levels=len(steps), series=series)
        figures.append(figure(name, drawing, alternative, caption))
    if not figures:
        return no_detection(results)
    key = ""
    if steps:
        opacities = [svg.level_opacity(level, len(steps)) for level in range(len(steps))]
        items = "".join(
            f"<li>{svg.swatch(0, line=False, opacity=opacity)}{count}</li>"
            for count, opacity in zip(steps, opacities, strict=True)
        )
        key = (
            '<p class="note">Detections in a cell, at least:</p>\n'
            f'<ul class="legend">{items}</ul>\n'
        )
    return (
        "<p>If scores told how good boxes are, all detections would lie along a rising line; on "
        "the dashed line, the score is the IoU. Top left: sure, but badly placed or no object "
        "there. Bottom right: well placed, but unsure, and easily lost at non-maximum suppression "
        "or a score threshold. The shapes at the upper and right edge count the detections at each "
        "IoU and score, on a logarithmic scale.</p>\n"
        f'{no_detection(results)}{key}<div class="figures">\n' + "\n".join(figures) + "\n</div>"
    )
