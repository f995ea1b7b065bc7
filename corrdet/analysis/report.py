"""The report: one HTML file that shows whether a detector's scores tell how good its boxes are.

It holds its style, script, figures and pictures, and asks the network for nothing. The same results
give the same file.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from corrdet.data.files import atomic_write
from corrdet.evaluation import Results
from corrdet.evaluation.matching import IOU_THRESHOLDS, box_ious
from corrdet.evaluation.measures import mean_of_defined

from . import svg
from .page import page

__all__ = ["MAX_BYTES", "TrainingFileError", "TrainingRun", "read_training", "write_report"]

TITLE = "Do scores tell how good the boxes are?"
# Pictures are left out rather than making the file larger; the rest has no limit.
MAX_BYTES = 5_000_000
PICTURE_SIDE = 400
PICTURES_OF_A_KIND = 6
# A sure detection that hardly touches an object of its class, or none, is another mistake than a
# badly placed box.
TOUCHING_IOU = 0.25
MAX_TRAINING_POINTS = 300
UNDEFINED = "n.d."
PR_THRESHOLDS = (50, 75, 90)

# Heading, and of each measure its name and what it says. What is not here comes last.
SUMMARY = (
    (
        "How good is the detector? Higher is better",
        {
            "AP": "Ranking and fit of the boxes in one number: the mean over IoU 0.50 to 0.95.",
            "AP50": "A box counts from an IoU of 0.50.",
            "AP60": "",
            "AP70": "",
            "AP75": "A box counts from an IoU of 0.75.",
            "AP80": "",
            "AP90": "Only boxes that fit almost perfectly count.",
            "APs": "AP of small objects, up to 32 x 32 pixels.",
            "APm": "AP of medium objects, up to 96 x 96 pixels.",
            "APl": "AP of large objects.",
            "AR1": "Share of the objects that the best detection of each image and class finds.",
            "AR10": "",
            "AR100": "Share of the objects that are found at all.",
            "ARs": "",
            "ARm": "",
            "ARl": "",
        },
    ),
    (
        "The error at the best score threshold. Lower is better",
        {
            "oLRP": "Badly placed, superfluous and missing boxes together.",
            "oLRP_Loc": "How badly the boxes are placed: the mean of 1 - IoU.",
            "oLRP_FP": "Share of the detections that are wrong.",
            "oLRP_FN": "Share of the objects that are missed.",
        },
    ),
    (
        "Do scores and boxes agree? Higher is better",
        {
            "beta_cls": "Do better boxes of a class score higher? 100: always, 0: no relation.",
            "beta_img": "The same within an image, before post-processing.",
            "PCC": "Linear correlation of score and IoU over all detections with an IoU above 0.5.",
            "SCC": "The same of the ranks.",
            "KCC": "The same of pairs: how many more are in order than not.",
        },
    ),
    (
        "How much does agreement matter here?",
        {
            "AP_upper": "AP if the correct detections of each class were ranked by their IoU.",
            "AP_lower": "AP if they were ranked against their IoU.",
            "AP75_upper": "",
            "AP75_lower": "",
            "AP_img_upper": "AP if the predictions of each image had scores in the order of IoU, "
            "before post-processing.",
            "AP_img_lower": "AP if they had scores against the order of IoU.",
            "AP50_img_upper": "",
            "AP50_img_lower": "",
            "AP75_img_upper": "",
            "AP75_img_lower": "",
        },
    ),
    (
        "Can a score be read as an IoU? Lower is better",
        {
            "AIC-mean": "Mean distance of score and IoU of the positives, before post-processing.",
            "AIC": "Their sum. Not in percent; it grows with the number of positives.",
        },
    ),
    (
        "Counts",
        {
            "images": "",
            "ground_truths": "Annotated objects, without crowds.",
            "detections": "In the results file.",
            "detections_left_out": "Beyond the 100 best of an image and class.",
            "beta_cls-classes": "Classes that beta_cls is the mean of.",
            "beta_img-images": "Images that beta_img is the mean of.",
            "correlated-detections": "Detections that PCC, SCC and KCC are over.",
        },
    ),
)
NOT_MEASURES = {"name", "iou_type", "per_class", "bootstrap", "differences", "others", "notes"}

# Of the table of classes: key in metrics.json, heading, what it is.
COLUMNS = (
    ("ground_truths", "objects", "annotated objects"),
    ("AP", "AP", "higher is better"),
    ("beta_cls", "beta_cls", "rank correlation of score and IoU of correct detections"),
    ("oLRP", "oLRP", "lower is better"),
    ("AP50", "AP50", "higher is better"),
    ("AP75", "AP75", "higher is better"),
    ("AP_lower", "AP_lower", "AP with the correct detections ranked against their IoU"),
    ("AP_upper", "AP_upper", "AP with the correct detections ranked by their IoU"),
    ("detections", "detections", "evaluated detections"),
    ("true_positives", "correct", "detections that find an object, at IoU 0.5"),
    ("oLRP_Loc", "Loc", "oLRP_Loc: badly placed boxes, lower is better"),
    ("oLRP_FP", "FP", "oLRP_FP: wrong detections, lower is better"),
    ("oLRP_FN", "FN", "oLRP_FN: missed objects, lower is better"),
    ("oLRP_threshold", "threshold", "score from which the oLRP is lowest"),
    ("PCC", "PCC", "linear correlation of score and IoU, IoU above 0.5"),
    ("SCC", "SCC", "rank correlation of score and IoU, IoU above 0.5"),
    ("KCC", "KCC", "correlation of pairs of score and IoU, IoU above 0.5"),
)
COMPARED = ("AP", "beta_cls", "oLRP")


class TrainingFileError(ValueError):
    """A folder of a training has no metrics that can be read."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training logged.

    Attributes:
        name: of the run.
        values: key -> iterations (n,), ascending, and finite values (n,).
    """

    name: str
    values: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)


def read_training(folder: str | os.PathLike, name: str) -> TrainingRun:
    """Read Detectron2's ``metrics.json`` of a training: a JSON object a line.

    A last line that is incomplete is left out: the training may still be running.

    Raises:
        TrainingFileError: another line is not an object with an iteration.
        OSError: there is no such file.
    """
    path = Path(folder) / "metrics.json"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    points: dict[str, dict[float, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines) and number > 1:
                break
            raise TrainingFileError(
                f"{path}, line {number}: expected a JSON object, got: {error}"
            ) from error
        if not isinstance(row, dict) or not _is_number(row.get("iteration")):
            raise TrainingFileError(
                f"{path}, line {number}: expected a JSON object with an iteration, got "
                f"{line.strip()[:60]}"
            )
        for key, value in row.items():
            if _is_number(value):
                # A resumed training may write an iteration twice; the last counts.
                points.setdefault(key, {})[row["iteration"]] = value
    values = {}
    for key, by_iteration in points.items():
        iterations = sorted(by_iteration)
        values[key] = np.array(iterations), np.array([by_iteration[i] for i in iterations], float)
    return TrainingRun(name, values)


def write_report(
    path: str | os.PathLike,
    results: Sequence[Results],
    metrics: Mapping,
    *,
    notes: Sequence[str] = (),
    images: str | os.PathLike | None = None,
    training: Sequence[TrainingRun] = (),
    progress: bool = False,
) -> list[str]:
    """Write the report of one or several results of the same ground truth.

    Args:
        path: of the HTML file.
        results: of each file; the figures come from these.
        metrics: the content of metrics.json for the same files; the numbers come from here.
        notes: sentences on how to read the summary.
        images: folder of the images, for pictures of the most inconsistent detections.
        training: runs to show the curves of.
        progress: show a progress bar.

    Returns:
        a sentence for each picture that could not be made.
    """
    entries = [metrics, *metrics["others"]]
    sections = [
        ("summary", "Summary", _summary(entries, notes)),
        ("density", "Score against IoU", _densities(results)),
        ("calibration", "What a score says about the box", _calibration(results)),
        ("shares", "How well the boxes fit", _shares(results)),
        ("bounds", "AP and what agreement could make of it", _bounds(results)),
        ("precision", "Precision and recall", _precision(results)),
        ("classes", "Classes", _classes(entries)),
    ]
    if training:
        sections.append(("training", "Training", _training(training)))
    glossary = ("words", "What the words mean", _glossary())
    introduction = _introduction(entries)
    if images is None:
        text = page(TITLE, introduction, [*sections, glossary])
        problems = []
    else:
        heading = "The most inconsistent detections"
        without = page(TITLE, introduction, [*sections, ("pictures", heading, ""), glossary])
        room = MAX_BYTES - len(without.encode(errors="replace"))
        content, problems = _pictures(results, images, room, progress)
        text = page(TITLE, introduction, [*sections, ("pictures", heading, content), glossary])
    # A name in a JSON file may have half of a pair of characters, which UTF-8 has not.
    with atomic_write(path, errors="replace", newline="\n") as file:
        file.write(text)
    return problems


# ---- Numbers.


def _is_number(value) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _number(value: float | None, sign: str = "", digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if isinstance(value, int):
        return f"{value:{sign}d}"
    return f"{value:{sign}.{digits}f}"


def _interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    if bounds is None:
        return ""
    return f"[{_number(bounds[0], sign)}, {_number(bounds[1], sign)}]"


def _excludes_zero(bounds: Sequence[float] | None) -> bool:
    return bounds is not None and (bounds[0] > 0 or bounds[1] < 0)


def _breakable(name: str) -> str:
    """A name as HTML that may go on in the next line at an underscore or a slash."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


# ---- Introduction and summary.


def _introduction(entries: Sequence[Mapping]) -> str:
    first = entries[0]
    kind = {"bbox": "boxes", "segm": "masks"}.get(first["iou_type"], first["iou_type"])
    lines = []
    for entry in entries:
        name = f"<strong>{escape(entry['name'])}</strong>"
        if not entry["detections"]:
            lines.append(f"{name} holds no detection: there is nothing to rank.")
            continue
        line = f"{name}: AP {_number(entry['AP'])}, beta_cls {_number(entry['beta_cls'])}."
        if _is_number(entry.get("AP_upper")) and _is_number(entry["AP"]):
            gain = entry["AP_upper"] - entry["AP"]
            line += (
                " If the correct detections of each class were ranked by how well they fit, AP "
                f"would be {_number(entry['AP_upper'])} ({_number(gain, '+')})."
            )
        bounds = entry.get("bootstrap", {}).get("differences", {}).get("AP")
        if bounds is not None:
            verdict = (
                "more than the choice of images explains"
                if _excludes_zero(bounds)
                else "which the choice of images alone may explain"
            )
            line += (
                f" AP differs from that of the first by {_number(entry['differences']['AP'], '+')} "
                f"{_interval(bounds, '+')}, {verdict}."
            )
        lines.append(line)
    items = "\n".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<p class="muted">{len(entries)} results {"files" if len(entries) > 1 else "file"}, '
        f"{first['images']} images, {first['ground_truths']} objects, {kind} compared.</p>\n"
        f"<ul>\n{items}\n</ul>"
    )


def _summary(entries: Sequence[Mapping], notes: Sequence[str]) -> str:
    first = entries[0]
    heads = [f'<th scope="col">{_breakable(entry["name"])}</th>' for entry in entries]
    heads += [
        f'<th scope="col">{_breakable(entry["name"])} - {_breakable(first["name"])}</th>'
        for entry in entries[1:]
    ]
    known = {key for _, group in SUMMARY for key in group}
    rest = {key: "" for key in first if key not in known and key not in NOT_MEASURES}
    rows = []
    for heading, group in (*SUMMARY, ("Further", rest)):
        present = [key for key in group if key in first]
        if present:
            rows.append(
                f'<tr class="group"><th colspan="{1 + len(heads)}" scope="colgroup">'
                f"<span>{heading}</span></th></tr>"
            )
        rows += [_summary_row(key, group[key], entries) for key in present]
    table = _scroll(
        "Summary",
        f'<table class="summary"><thead><tr><th scope="col">measure</th>{"".join(heads)}</tr>'
        f"</thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>",
    )
    told = [*notes]
    if "bootstrap" in first:
        told.append(
            "The intervals say what another choice of images would have given, not what another "
            "training would have given."
        )
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in told)
    said = f'<ul class="note">\n{lines}</ul>\n' if told else ""
    return f"{said}{table}\n{_undefined_note()}"


def _summary_row(key: str, what: str, entries: Sequence[Mapping]) -> str:
    cells = []
    for entry in entries:
        bounds = entry.get("bootstrap", {}).get("intervals", {}).get(key)
        cells.append(_cell(_number(entry.get(key)), _interval(bounds)))
    for entry in entries[1:]:
        bounds = entry.get("bootstrap", {}).get("differences", {}).get(key)
        value = entry.get("differences", {}).get(key)
        if key not in entry.get("differences", {}):
            cells.append("<td></td>")
            continue
        star = " *" if _excludes_zero(bounds) else ""
        cells.append(_cell(_number(value, "+") + star, _interval(bounds, "+")))
    told = f'<span class="what">{escape(what)}</span>' if what else ""
    return f'<tr><th scope="row">{_breakable(key)}{told}</th>{"".join(cells)}</tr>'


def _cell(value: str, interval: str = "") -> str:
    return f"<td>{value}{f'<span class=interval>{interval}</span>' if interval else ''}</td>"


def _scroll(label: str, content: str, *, tall: bool = False) -> str:
    """A box that scrolls for itself, by keyboard too."""
    return (
        f'<div class="scroll{" tall" if tall else ""}" role="region" tabindex="0" '
        f'aria-label="{escape(label)}, table">{content}</div>'
    )


def _undefined_note() -> str:
    return (
        f'<p class="note">{UNDEFINED}: not defined. A class without objects has no AP and no '
        "oLRP; without a correct detection there is no Loc, FP or threshold; a correlation needs "
        "two detections with different scores and different IoUs. Such values are left out of "
        "means.</p>"
    )


# ---- Figures.


def _figure(
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


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f"<li>{svg.swatch(series)}{escape(name)}</li>" for series, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _numbers(
    label: str, first: str, rows: Sequence[str], columns: Mapping[str, Sequence[float]]
) -> str:
    """A table of a figure's numbers: a row for each of ``rows``, columns by name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{row}</th>'
        + "".join(f"<td>{_number(float(values[index]))}</td>" for values in columns.values())
        + "</tr>\n"
        for index, row in enumerate(rows)
    )
    return _scroll(
        label,
        f'<table><thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>",
    )


def _from_to(name: str, values: np.ndarray, what: str) -> str:
    """First and last defined value, for the text alternative of a curve."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return f"{name}: {what} is not defined."
    return f"{name}: {what} goes from {_number(defined[0])} to {_number(defined[-1])}."


def _names(results: Sequence[Results]) -> list[str]:
    return [result.name for result in results]


def _no_detection(results: Sequence[Results]) -> str:
    """A sentence about the files without detections."""
    empty = [escape(result.name) for result in results if not len(result.matches.scores)]
    if not empty:
        return ""
    return f"<p>No detection in {', '.join(empty)}: nothing to draw.</p>\n"


def _densities(results: Sequence[Results]) -> str:
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
        coefficients = ", ".join(f"{k} {_number(result.measures[k])}" for k in ("PCC", "SCC"))
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
        figures.append(_figure(name, drawing, alternative, caption))
    if not figures:
        return _no_detection(results)
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
        f'{_no_detection(results)}{key}<div class="figures">\n' + "\n".join(figures) + "\n</div>"
    )


def _calibration(results: Sequence[Results]) -> str:
    bins = np.linspace(0, 1, 21)
    means, spreads, counts = [], [], []
    for result in results:
        scores = result.matches.scores
        # An IoU of 1 belongs to the last bin.
        index = np.minimum(np.digitize(result.matches.best_ious, bins) - 1, len(bins) - 2)
        of_bins = [scores[index == number] for number in range(len(bins) - 1)]
        means.append(np.array([part.mean() if len(part) else np.nan for part in of_bins]))
        spreads.append(
            np.array(
                [np.quantile(p, [0.25, 0.75]) if len(p) else (np.nan, np.nan) for p in of_bins]
            ).T
        )
        counts.append([len(part) for part in of_bins])
    if not any(len(result.matches.scores) for result in results):
        return _no_detection(results)
    rows = [f"{low:.2f} to {high:.2f}" for low, high in zip(bins[:-1], bins[1:], strict=True)]
    columns = {}
    for result, mean, count in zip(results, means, counts, strict=True):
        columns[f"{result.name}: mean score"] = mean
        columns[f"{result.name}: detections"] = count
    band = " The band holds the middle half of the scores." if len(results) == 1 else ""
    alternative = "Mean score in bins of IoU. " + " ".join(
        _from_to(name, mean, "the mean score of the lowest to the highest bin")
        for name, mean in zip(_names(results), means, strict=True)
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
    numbers = _numbers("Mean score in bins of IoU", "IoU", rows, columns)
    return (
        f"{_no_detection(results)}{_legend(_names(results))}"
        f"{_figure('calibration-0', drawing, alternative, caption, numbers, is_alone=True)}"
    )


def _shares(results: Sequence[Results]) -> str:
    found = [result for result in results if len(result.matches.scores)]
    if not found:
        return _no_detection(results)
    shares = []
    for result in results:
        ious = result.matches.best_ious
        reached = (ious[:, None] >= IOU_THRESHOLDS).sum(axis=0)
        shares.append(100 * reached / len(ious) if len(ious) else np.full(10, np.nan))
    alternative = "Share of the detections that reach an IoU, from 0.5 to 0.95. " + " ".join(
        _from_to(name, share, "the share in percent")
        for name, share in zip(_names(results), shares, strict=True)
    )
    caption = (
        "How many of all detections overlap an object of their class with at least this IoU. "
        "Scores play no part here, only boxes do. Detections that find nothing, and second "
        "detections of the same object, count too: a detector that keeps more low scores has "
        "lower shares."
    )
    numbers = _numbers("Share of the detections in percent", "IoU of at least", _thresholds(),
                       dict(zip(_names(results), shares, strict=True)))  # fmt: skip
    figure = _figure(
        "shares-0",
        svg.share_curves(shares, "shares-0"),
        alternative,
        caption,
        numbers,
        is_alone=True,
    )
    return f"{_no_detection(results)}{_legend(_names(results))}{figure}"


def _thresholds() -> list[str]:
    return [f"{threshold:.2f}" for threshold in IOU_THRESHOLDS]


def _mean_over_classes(precision: np.ndarray) -> np.ndarray:
    """(T, C, ...) -> (T, ...); NaN where no class has ground truth."""
    defined = np.isfinite(precision).all(axis=tuple(i for i in range(precision.ndim) if i != 1))
    return precision[:, defined].mean(axis=1) if defined.any() else precision.mean(axis=1)


def _bounds(results: Sequence[Results]) -> str:
    curves, columns = [], {}
    for result in results:
        ap, lower, upper = (
            100 * _mean_over_classes(precision.mean(axis=2))
            for precision in (result.precision, result.precision_lower, result.precision_upper)
        )
        curves.append((ap, lower, upper))
        columns |= {
            f"{result.name}: lower bound": lower,
            f"{result.name}: AP": ap,
            f"{result.name}: upper bound": upper,
        }
    alternative = "AP at IoU thresholds from 0.5 to 0.95, with bounds. " + " ".join(
        _from_to(name, ap, "AP")
        + f" At 0.75 it is {_number(ap[5])}, between {_number(lower[5])} and {_number(upper[5])}."
        for name, (ap, lower, upper) in zip(_names(results), curves, strict=True)
    )
    caption = (
        "The line is AP where a box counts from that IoU on. The band is where AP could be with "
        "the same boxes: its upper edge if the correct detections of each class were ranked by "
        "their IoU, its lower edge if they were ranked against it. At 0.5 nothing changes, as all "
        "of them count there. The room above the line is what better agreement of scores and "
        "boxes can bring; below the band only better boxes help."
    )
    numbers = _numbers("AP by IoU threshold in percent", "IoU", _thresholds(), columns)
    drawing = svg.bound_curves(curves, "bounds-0")
    figure = _figure("bounds-0", drawing, alternative, caption, numbers, is_alone=True)
    return f"{_legend(_names(results))}{figure}"


def _precision(results: Sequence[Results]) -> str:
    figures = []
    for percent in PR_THRESHOLDS:
        row = int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, percent / 100))[0])
        curves = [100 * _mean_over_classes(result.precision)[row] for result in results]
        name = f"precision-{percent}"
        areas = [mean_of_defined(curve) for curve in curves]
        alternative = f"Precision against recall at IoU {percent / 100:.2f}. " + " ".join(
            f"{label}: mean precision {_number(area)}, {_number(float(curve[50]))} at a recall of "
            "50 percent."
            for label, area, curve in zip(_names(results), areas, curves, strict=True)
        )
        said = ", ".join(
            f"{escape(label)} {_number(area)}"
            for label, area in zip(_names(results), areas, strict=True)
        )
        caption = f"<strong>IoU of at least {percent / 100:.2f}.</strong> AP{percent}: {said}."
        recalls = range(0, 101, 10)
        numbers = _numbers(
            f"Precision in percent at IoU {percent / 100:.2f}",
            "recall (%)",
            list(map(str, recalls)),
            {label: curve[::10] for label, curve in zip(_names(results), curves, strict=True)},
        )
        drawing = svg.precision_curves(curves, name)
        figures.append(_figure(name, drawing, alternative, caption, numbers))
    return (
        "<p>Taking detections from the highest score down, more and more objects are found "
        "(recall), and more and more of the detections are wrong (precision falls). The mean over "
        "classes; the area under the curve is the AP. A curve that begins low at a high IoU has "
        "badly placed boxes among the highest scores. Where it ends, the rest of the objects is "
        f'not found.</p>\n{_legend(_names(results))}<div class="figures small">\n'
        + "\n".join(figures)
        + "\n</div>"
    )


# ---- Classes.


def _classes(entries: Sequence[Mapping]) -> str:
    per_class = [entry["per_class"] for entry in entries]
    columns = [
        column for column in COLUMNS if any(column[0] in row for row in per_class[0].values())
    ]
    is_compared = len(entries) > 1
    heads = [("class", "name of the class", True)]
    if is_compared:
        heads.append(("file", "results file", True))
    for key, label, what in columns:
        heads.append((label, what, False))
        if is_compared and key in COMPARED:
            heads.append((f"{key} diff.", f"minus that of {entries[0]['name']}", False))
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=text" if is_text else ""}>'
        f'<button type="button" title="{escape(what)}">{escape(label)}</button></th>'
        for label, what, is_text in heads
    )
    rows = []
    for name in per_class[0]:
        for file, entry in enumerate(entries):
            values = entry["per_class"][name]
            cells = [f'<td class="text">{_breakable(entry["name"])}</td>'] if is_compared else []
            for key, _, _ in columns:
                value, base = values.get(key), per_class[0][name].get(key)
                cells.append(f"<td>{_number(value)}</td>")
                if is_compared and key in COMPARED:
                    is_there = file and value is not None and base is not None
                    text = _number(value - base, "+") if is_there else UNDEFINED if file else ""
                    cells.append(f"<td>{text}</td>")
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    count = len(per_class[0])
    intro = (
        "<p>The buttons in the head sort: once, again for the other direction. "
        f"{'A class' if not is_compared else 'Each class has a row for each file. A class'} with a "
        "low beta_cls and a wide gap between AP and AP_upper gains most from better agreement; one "
        "with a high Loc needs better boxes. Values of a class with few objects say little.</p>"
    )
    search = (
        '<div class="filter" hidden><label for="classes-table-filter">Show classes with</label>'
        '<input id="classes-table-filter" type="search" autocomplete="off" spellcheck="false">'
        '<output id="classes-table-status" aria-live="polite"></output></div>'
    )
    table = _scroll(
        f"{count} classes",
        f'<table class="classes" id="classes-table"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n" + "\n".join(rows) + "\n</tbody></table>",
        tall=True,
    )
    return f"{intro}\n{search}\n{table}\n{_undefined_note()}"


# ---- Training.

# Key or prefix of a key, heading, caption.
CURVES = (
    ("AIC/mean", "Mean inconsistency", "Mean distance of score and IoU over the positives of the "
     "batch. Falling: scores and boxes come to agree."),
    ("AIC/sum", "Summed inconsistency (AIC)", "The same, summed over the positives. It also grows "
     "with their number."),
    ("correlation/", "Correlation of the batch: {}", "Correlation of score and IoU over the "
     "positives of the batch. 1: better boxes always score higher, 0: no relation."),
    ("positives/", "Positives: {}", "Mean over the positives of the batch; the band is from the "
     "10th to the 90th percentile."),
    ("total_loss", "Total loss", "What is minimized, weighted as in the config."),
    ("loss_", "Loss: {}", "One of its parts, with its weight."),
)  # fmt: skip


def _training(runs: Sequence[TrainingRun]) -> str:
    keys = sorted({key for run in runs for key in run.values})
    figures = []
    for prefix, heading, caption in CURVES:
        for key in keys:
            rest = key.removeprefix(prefix)
            if rest == key or (rest and not prefix.endswith(("/", "_"))):
                continue
            if prefix == "positives/":
                if not rest.endswith("-mean"):
                    continue
                rest = rest.removesuffix("-mean")
            figures.append(_training_figure(runs, key, heading.format(rest), caption))
    if not figures:
        names = ", ".join(escape(run.name) for run in runs)
        return (
            f"<p>No losses and no correlations are logged in the metrics of {names}, or none that "
            "are numbers: a training that diverged logs NaN.</p>"
        )
    return (
        "<p>What was logged while training, as it was smoothed then. Long trainings are shown by "
        f'means of neighbouring values.</p>\n{_legend([run.name for run in runs])}\n<div class="'
        'figures small">\n' + "\n".join(figures) + "\n</div>"
    )


def _training_figure(runs: Sequence[TrainingRun], key: str, heading: str, caption: str) -> str:
    none = np.zeros(0), np.zeros(0)
    curves = [_thinned(*run.values.get(key, none)) for run in runs]
    bands = []
    if key.startswith("positives/"):
        for run, (iterations, _) in zip(runs, curves, strict=True):
            ends = [run.values.get(f"{key.removesuffix('-mean')}-{end}") for end in ("p10", "p90")]
            thin = [_thinned(*end)[1] for end in ends if end is not None]
            fits = len(thin) == 2 and all(len(values) == len(iterations) for values in thin)
            bands.append(tuple(thin) if fits else None)
    name = "training-" + "".join(c if c.isascii() and c.isalnum() else f"-{ord(c)}-" for c in key)
    alternative = f"{heading}, against the iteration. " + " ".join(
        _from_to(run.name, values, "it") for run, (_, values) in zip(runs, curves, strict=True)
    )
    drawing = svg.training_curves(curves, name, label="", bands=bands)
    return _figure(name, drawing, alternative, f"<strong>{escape(heading)}.</strong> {caption}")


def _thinned(iterations: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MAX_TRAINING_POINTS``: means of neighbours."""
    if len(values) <= MAX_TRAINING_POINTS:
        return iterations, values
    starts = np.linspace(0, len(values), MAX_TRAINING_POINTS, endpoint=False).astype(int)
    counts = np.diff(starts, append=len(values))
    return np.add.reduceat(iterations, starts) / counts, np.add.reduceat(values, starts) / counts


# ---- Pictures.


def _pictures(
    results: Sequence[Results], folder: str | os.PathLike, room: int, progress: bool
) -> tuple[str, list[str]]:
    """Pictures of the most inconsistent detections, in at most ``room`` bytes; and what failed."""
    # Fewer of each file where there are many.
    count = max(2, PICTURES_OF_A_KIND * 3 // max(3, len(results)))
    kinds = (
        ("Sure, but badly placed",
         "Of the detections that touch an object of their class, those whose score is farthest "
         "above their IoU, one of each image. A high score lets them win against better boxes."),
        ("Well placed, but unsure",
         "Those whose IoU is farthest above their score, one of each image. A low score lets good "
         "boxes lose, or fall below a threshold."),
    )  # fmt: skip
    chosen = [_inconsistent(result, count) for result in results]
    total = sum(len(rows) for pair in chosen for rows in pair)
    problems, parts = [], []
    left_out = 0
    bar = tqdm(total=total, desc="pictures", unit="picture", disable=not progress)
    for result, pair in zip(results, chosen, strict=True):
        for (heading, what), rows in zip(kinds, pair, strict=True):
            cards = []
            for row in rows:
                bar.update()
                try:
                    card = _picture(result, int(row), folder)
                except _PictureError as error:
                    problems.append(str(error))
                    continue
                size = len(card.encode(errors="replace"))
                if size > room:
                    left_out += 1
                    continue
                room -= size
                cards.append(card)
            name = f": {escape(result.name)}" if len(results) > 1 else ""
            content = "\n".join(cards) or "<p>None.</p>"
            parts.append(
                f'<h3>{heading}{name}</h3>\n<p>{what}</p>\n<div class="figures pictures">\n'
                f"{content}\n</div>"
            )
    bar.close()
    problems = list(dict.fromkeys(problems))
    legend = (
        '<ul class="legend"><li><span class="key"><i></i></span>objects of the class</li>'
        '<li><span class="key"><i class="solid"></i></span>the detection</li></ul>'
    )
    notes = [f"Not drawn: {problem}." for problem in problems]
    if left_out:
        notes.append(f"{left_out} pictures are left out to keep the file small.")
    if results[0].iou_type == "segm":
        notes.append("Boxes are drawn around the masks; the IoU is that of the masks.")
    said = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    return f"{legend}\n{said}" + "\n".join(parts), problems


def _inconsistent(result: Results, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the detections whose score is farthest above, and below, their IoU."""
    matches = result.matches
    gaps = matches.scores - matches.best_ious
    # Boxes in a crowd count as neither right nor wrong.
    is_counted = ~matches.ignored[0, 0]
    sure = np.flatnonzero(is_counted & (gaps > 0) & (matches.best_ious >= TOUCHING_IOU))
    unsure = np.flatnonzero(is_counted & (gaps < 0) & (matches.best_ious >= 0.5))
    picked = []
    for rows, key in ((sure, -gaps), (unsure, gaps)):
        rows = rows[np.argsort(key[rows], kind="stable")]
        _, first = np.unique(matches.images[rows], return_index=True)
        picked.append(rows[np.sort(first)[:count]])
    return picked[0], picked[1]


class _PictureError(Exception):
    """An image cannot be shown; says which and why."""


def _picture(result: Results, row: int, folder: str | os.PathLike) -> str:
    """A figure of a detection, the objects of its class around it, on a part of their image."""
    gt, matches = result.ground_truth, result.matches
    image_row, category = int(matches.images[row]), int(matches.categories[row])
    file_name = gt.file_names[image_row] or ""
    image = _open(folder, file_name, gt.sizes[image_row])
    box = result.boxes[row]
    is_near = (gt.images == image_row) & (gt.categories == category) & ~gt.is_crowd
    objects = gt.boxes[is_near]
    # The object that it is about; masks may be nearest to another, which is in the picture too.
    ious = box_ious(np.broadcast_to(box, objects.shape), objects, np.zeros(len(objects), bool))
    nearest = objects[np.argmax(ious)]

    left, top, right, bottom = _surroundings(np.stack([box, nearest]), image.size)
    part = image.crop((left, top, right, bottom))
    part.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    data = io.BytesIO()
    part.save(data, "JPEG", quality=80, optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode()

    def rectangle(xywh, kind):
        x, y, width, height = xywh[0] - left, xywh[1] - top, xywh[2], xywh[3]
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        # Dark below light: to be seen on any image.
        return f'<rect class="under" {place}/><rect class="{kind}" {place}/>'

    shapes = "".join(rectangle(xywh, "object") for xywh in objects) + rectangle(box, "detection")
    score, iou = matches.scores[row], matches.best_ious[row]
    label = f"{gt.category_names[category]}: score {score:.2f}, IoU {iou:.2f}"
    alternative = f"A part of the image {file_name} with a detection and the objects of its class."
    return (
        f'<figure><div class="picture"><img alt="{escape(alternative)}" width="{part.width}" '
        f'height="{part.height}" src="data:image/jpeg;base64,{encoded}">'
        f'<svg viewBox="0 0 {right - left} {bottom - top}" preserveAspectRatio="none" '
        f'aria-hidden="true">{shapes}</svg></div>'
        f'<figcaption><strong>{escape(label)}</strong> <span class="what">{escape(file_name)}'
        "</span></figcaption></figure>"
    )


def _open(folder: str | os.PathLike, file_name: str, size: np.ndarray) -> Image.Image:
    """An image as its annotations see it.

    Raises:
        _PictureError: it is not in the folder, cannot be read, or has another size.
    """
    if not file_name:
        raise _PictureError("an image has no file name in the annotations")
    name = PurePath(file_name)
    # The report may be passed on: what a file of annotations asks for stays in the folder.
    if name.is_absolute() or ".." in name.parts:
        raise _PictureError(f"{file_name} is outside of the folder of the images")
    try:
        with Image.open(os.path.join(folder, file_name)) as opened:
            image = opened.convert("RGB")
            turned = ImageOps.exif_transpose(opened)
            wanted = tuple(int(side) for side in size)
            if 0 in wanted or image.size == wanted:
                return image
            if turned.size == wanted:
                return turned.convert("RGB")
            actual = image.size
    except FileNotFoundError as error:
        raise _PictureError(f"{file_name} is missing") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _PictureError(f"{file_name} cannot be read ({error})") from error
    raise _PictureError(
        f"{file_name} has {actual[0]} x {actual[1]} pixels, its annotations are of "
        f"{wanted[0]} x {wanted[1]}"
    )


def _surroundings(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image to show for boxes XYWH: with some margin, not too small."""
    low = boxes[:, :2].min(axis=0)
    high = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    sides = np.maximum(1.8 * (high - low), 160)
    # As square as the image allows, so that pictures stand side by side.
    sides = np.minimum(np.maximum(sides, sides.max() * 0.75), size)
    start = np.clip((low + high - sides) / 2, 0, np.array(size) - sides)
    left, top = np.floor(start).astype(int).tolist()
    right, bottom = np.ceil(start + sides).astype(int).tolist()
    return left, top, min(right, size[0]), min(bottom, size[1])


# ---- Words.


def _glossary() -> str:
    words = {
        "IoU": "Intersection over union: the area that two boxes share, divided by the area that "
        "they cover together. 1 is a perfect fit. Where masks are compared, that of the masks.",
        "Score": "What the detector ranks its boxes by, from 0 to 1.",
        "Correct detection, true positive": "A detection that finds an object of its class with an "
        "IoU of at least 0.5 that no better scored detection has found.",
        "Agreement is not performance": "A detector that finds only easy objects can have a high "
        "correlation and a low AP. Read beta_cls beside AP and oLRP_Loc.",
        "Bounds": "The ranking of the correct detections is changed, and nothing else. They are "
        "not what a training can reach.",
        "Confidence interval": "How far a measure moves when the images are drawn anew. Two "
        "detectors whose difference has an interval around 0 may be equally good.",
    }
    items = "\n".join(f"<dt>{escape(word)}</dt><dd>{text}</dd>" for word, text in words.items())
    return f"<dl>\n{items}\n</dl>"
