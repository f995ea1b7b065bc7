"""How well the boxes fit, whatever their scores."""

from collections.abc import Sequence

import numpy as np

from corrdet.measures import Results
from corrdet.measures.matching import IOU_THRESHOLDS

from . import svg
from .html import figure, from_to, legend, names_of, no_detection, number_table, thresholds


def chapter(results: Sequence[Results]) -> str:
    found = [result for result in results if len(result.matches.scores)]
    if not found:
        return no_detection(results)
    shares = []
    for result in results:
        ious = result.matches.best_ious
        reached = (ious[:, None] >= IOU_THRESHOLDS).sum(axis=0)
        shares.append(100 * reached / len(ious) if len(ious) else np.full(10, np.nan))
    alternative = "Share of the detections that reach an IoU, from 0.5 to 0.95. " + " ".join(
        from_to(name, share, "the share in percent")
        for name, share in zip(names_of(results), shares, strict=True)
    )
    caption = (
        "How many of all detections overlap an object of their class with at least this IoU. "
        "Scores play no part here, only boxes do. Detections that find nothing, and second "
        "detections of the same object, count too: a detector that keeps more low scores has "
        "lower shares."
    )
    numbers = number_table("Share of the detections in percent", "IoU of at least", thresholds(),
                       dict(zip(names_of(results), shares, strict=True)))  # fmt: skip
    drawn = figure(
        "shares-0",
        svg.share_curves(shares, "shares-0"),
        alternative,
        caption,
        numbers,
        is_alone=True,
    )
    return f"{no_detection(results)}{legend(names_of(results))}{drawn}"
