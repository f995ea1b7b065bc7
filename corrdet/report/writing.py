"""The report: its chapters put together, and written as one file."""

import os
import re
from collections.abc import Mapping, Sequence

from corrdet.coco.messages import printable
from corrdet.files import atomic_write
from corrdet.measures import Results

from . import (
    bounds,
    calibration,
    classes,
    confusion,
    density,
    errors,
    fit,
    glossary,
    operating,
    pictures,
    precision,
    summary,
)
from . import training as training_curves
from .introduction import introduction, made
from .page import page
from .training import TrainingRun

# In names from files: control characters, some of which turn the direction of text, and halves of
# pairs of characters, which UTF-8 has not.
UNSHOWN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

TITLE = "Do scores tell how good the boxes are?"
# Pictures are left out rather than making the file larger; the rest has no limit.
MAX_BYTES = 5_000_000
# Comments, which no name from a file can be: they are escaped.
ERRORS_HERE, PICTURES_HERE = "<!--errors-->", "<!--pictures-->"


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

    Raises:
        WriteError: the file cannot be written.
    """
    entries = [metrics, *metrics["others"]]
    sections = [
        ("errors", "Errors by type", ERRORS_HERE),
        ("operating", "Where to cut off", operating.chapter(entries)),
        ("confusion", "Confused classes", confusion.chapter(entries)),
        ("density", "Score against IoU", density.chapter(results)),
        (
            "calibration",
            "What a score says about the box",
            f"{calibration.chapter(results)}\n{calibration.errors(entries)}",
        ),
        ("shares", "How well the boxes fit", fit.chapter(results)),
        ("bounds", "AP and what agreement could make of it", bounds.chapter(results)),
        ("precision", "Precision and recall", precision.chapter(results)),
        ("summary", "All numbers", summary.chapter(entries)),
        ("classes", "Classes", classes.chapter(entries)),
    ]
    if training:
        sections.append(("training", "Training", training_curves.chapter(training)))
    words = ("words", "What the words mean", glossary.chapter())
    verdict = introduction(entries) + summary.notes_on(entries, notes)
    problems: list[str] = []
    heading = "The most inconsistent detections"
    if images is not None:
        sections.append(("pictures", heading, PICTURES_HERE))
    text = page(TITLE, verdict, [*sections, words], made(metrics))
    # First whatever has no limit, then pictures as long as there is room.
    room = MAX_BYTES - len(text.encode(errors="replace"))
    content, room = errors.chapter(results, entries, images, room, problems)
    text = text.replace(ERRORS_HERE, content)
    if images is not None:
        content, more = pictures.chapter(results, images, room, progress)
        text = text.replace(PICTURES_HERE, content)
        problems = list(dict.fromkeys([*problems, *more]))
    text = UNSHOWN.sub(lambda match: printable(match[0]), text)
    with atomic_write(path, newline="\n") as file:
        file.write(text)
    return problems
