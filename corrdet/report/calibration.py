"""What a score says about the box: mean scores in bins of IoU."""

from collections.abc import Sequence

import numpy as np

from corrdet.measures import Results

from . import svg
from .html import figure, from_to, legend, names_of, no_detection, number_table


def chapter(results: Sequence[Results]) -> str:
    bins = np.linspace(0, 1, 21)
    means, spreads, counts = [], [], []
    for result in results:
        scores = result.matches.scores
        # An IoU of 1 belongs to the last bin.
        index = np.minimum(np.digitize(result.matches.best_ious, bins) - 1, len(bins) - 2)
        bin_scores = [scores[index == number] for number in range(len(bins) - 1)]
        means.append(np.array([part.mean() if len(part) else np.nan for part in bin_scores]))
        spreads.append(
            np.array(
                [np.quantile(p, [0.25, 0.75]) if len(p) else (np.nan, np.nan) for p in bin_scores]
            ).T
        )
        counts.append([len(part) for part in bin_scores])
    if not any(len(result.matches.scores) for result in results):
        return no_detection(results)
    rows = [f"{low:.2f} to {high:.2f}" for low, high in zip(bins[:-1], bins[1:], strict=True)]
    columns = {}
    for result, mean, count in zip(results, means, counts, strict=True):
        columns[f"{result.name}: mean score"] = mean
        columns[f"{result.name}: detections"] = count
    band = " The band holds the middle half of the scores." if len(results) == 1 else ""
    alternative = "Mean score in bins of IoU. " + " ".join(
        from_to(name, mean, "the mean score of the lowest to the highest bin")
        for name, mean in zip(names_of(results), means, strict=True)
    )
    caption = (
        "The mean score of detections whose IoU with the nearest object of their class is in a bin "
        "of width 0.05. A good score rises all the way: steep on the right means that it tells "
        "good boxes from perfect ones, flat means that it only tells objects from background. On "
        f"the dashed line, the score is the IoU.{band} A gap is a bin without detections."
    )
    drawing = svg.calibration_curves(
        bins, means, "calibration-0", spreads[0] if len(results) == 1 else None
    )
    numbers = number_table("Mean score in bins of IoU", "IoU", rows, columns)
    return (
        f"{no_detection(results)}{legend(names_of(results))}"
        f"{figure('calibration-0', drawing, alternative, caption, numbers, is_alone=True)}"
    )
