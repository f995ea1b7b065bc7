"""What trainings logged, read and drawn."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from corrdet.errors import CorrdetError
from corrdet.files import reading
from corrdet.options import is_number

from . import svg
from .html import figure, from_to, legend

MAX_TRAINING_POINTS = 300
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


class TrainingFileError(CorrdetError, ValueError):
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
        ReadError: there is no such file.
    """
    path = Path(folder) / "metrics.json"
    with reading():
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
        if not isinstance(row, dict) or not is_number(row.get("iteration")):
            raise TrainingFileError(
                f"{path}, line {number}: expected a JSON object with an iteration, got "
                f"{line.strip()[:60]}"
            )
        for key, value in row.items():
            if is_number(value):
                # A resumed training may write an iteration twice; the last counts.
                points.setdefault(key, {})[row["iteration"]] = value
    values = {}
    for key, by_iteration in points.items():
        iterations = sorted(by_iteration)
        values[key] = np.array(iterations), np.array([by_iteration[i] for i in iterations], float)
    return TrainingRun(name, values)


def chapter(runs: Sequence[TrainingRun]) -> str:
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
        f'means of neighbouring values.</p>\n{legend([run.name for run in runs])}\n<div class="'
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
        from_to(run.name, values, "it") for run, (_, values) in zip(runs, curves, strict=True)
    )
    drawing = svg.training_curves(curves, name, label="", bands=bands)
    return figure(name, drawing, alternative, f"<strong>{escape(heading)}.</strong> {caption}")


def _thinned(iterations: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MAX_TRAINING_POINTS``: means of neighbours."""
    if len(values) <= MAX_TRAINING_POINTS:
        return iterations, values
    starts = np.linspace(0, len(values), MAX_TRAINING_POINTS, endpoint=False).astype(int)
    counts = np.diff(starts, append=len(values))
    return np.add.reduceat(iterations, starts) / counts, np.add.reduceat(values, starts) / counts
