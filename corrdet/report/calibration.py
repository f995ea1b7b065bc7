"""What a score says about the box: mean scores in bins of IoU."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from corrdet.measures import Results

from . import svg
from .html import (
    cell,
    figure,
    from_to,
    legend,
    names_of,
    no_detection,
    number,
    number_table,
    scroll,
)

ERRORS = ("D-ECE", "LaECE_0", "LaACE_0", "beta_cls")


def errors(entries: Sequence[Mapping]) -> str:
    """The table of calibration errors, and what scores are worth."""
    rows = []
    for entry in entries:
        for key, title in (("errors", ""), ("calibrated", ", calibrated")):
            part = entry["calibration"][key]
            if part is not None:
                cells = "".join(cell(number(part[name])) for name in ERRORS)
                rows.append(f'<tr><th scope="row">{escape(entry["name"])}{title}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ERRORS)
    table = scroll(
        "Calibration errors",
        f'<table><thead><tr><th scope="col">file</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table>",
    )
    names = [entry["name"] for entry in entries]
    parts = [entry["calibration"] for entry in entries]
    scores = [np.array(part["scores"], dtype=float) for part in parts]
    figures = []
    for key, label in (("ious", "mean IoU"), ("precision", "precision")):
        values = [np.array(part[key], dtype=float) for part in parts]
        what = (
            "IoU with the matched object, 0 without one"
            if key == "ious"
            else "share of correct detections, at an IoU of at least 0.5"
        )
        alternative = f"Mean score against {what}, in 25 bins of score. " + " ".join(
            from_to(name, value, label) for name, value in zip(names, values, strict=True)
        )
        caption = f"{what[0].upper()}{what[1:]}, in bins of score. Below the line: too sure."
        drawing = svg.reliability_curves(scores, values, f"reliability-{key}", label)
        figures.append(figure(f"reliability-{key}", drawing, alternative, caption))
    return (
        "<p>Calibration errors in percent, lower is better: D-ECE compares scores with precision "
        "(correct: IoU of at least 0.5), LaECE_0 and LaACE_0 with the IoU of the object matched at "
        "any IoU (tau 0), class by class. <strong>Calibrated</strong> is what isotonic regression "
        "of each class makes of the scores, learned on the other half of the images. It mends "
        "calibration and keeps the order of scores, so that beta_cls hardly moves: a detector can "
        "be calibrated without telling good boxes from better ones.</p>\n"
        f'{table}\n{legend(names)}<div class="figures">\n' + "\n".join(figures) + "\n</div>"
    )


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
