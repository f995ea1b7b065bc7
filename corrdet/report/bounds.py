"""AP, and what agreement could make of it."""

from collections.abc import Sequence

from corrdet.measures import Results

from . import svg
from .html import (
    figure,
    from_to,
    legend,
    mean_over_classes,
    names_of,
    number,
    number_table,
    thresholds,
)


def chapter(results: Sequence[Results]) -> str:
    curves, columns = [], {}
    for result in results:
        ap, lower, upper = (
            100 * mean_over_classes(precision.mean(axis=2))
            for precision in (result.precision, result.precision_lower, result.precision_upper)
        )
        curves.append((ap, lower, upper))
        columns |= {
            f"{result.name}: lower bound": lower,
            f"{result.name}: AP": ap,
            f"{result.name}: upper bound": upper,
        }
    alternative = "AP at IoU thresholds from 0.5 to 0.95, with bounds. " + " ".join(
        from_to(name, ap, "AP")
        + f" At 0.75 it is {number(ap[5])}, between {number(lower[5])} and {number(upper[5])}."
        for name, (ap, lower, upper) in zip(names_of(results), curves, strict=True)
    )
    caption = (
        "The line is AP where a box counts from that IoU on. The band is where AP could be with "
        "the same boxes: its upper edge if the correct detections of each class were ranked by "
        "their IoU, its lower edge if they were ranked against it. At 0.5 nothing changes, as all "
        "of them count there. The room above the line is what better agreement of scores and "
        "boxes can bring; below the band only better boxes help."
    )
    numbers = number_table("AP by IoU threshold in percent", "IoU", thresholds(), columns)
    drawing = svg.bound_curves(curves, "bounds-0")
    drawn = figure("bounds-0", drawing, alternative, caption, numbers, is_alone=True)
    return f"{legend(names_of(results))}{drawn}"
