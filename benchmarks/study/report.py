"""The table of a study, its forest plot, and how many seeds it would take."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from corrdet.files import atomic_write

from .grid import BASELINE, Grid
from .running import METRICS
from .statistics import Effect, paired_effect, pooled_deviation, seeds_needed

EFFECT_OF_INTEREST = 0.5  # AP


def effects_of(results: Sequence[dict], metric: str) -> dict[tuple[str, str], Effect]:
    """(detector, loss) -> effect on a measure, of what has a seed in common with the baseline."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for result in results:
        key = result["detector"], result["loss"]
        values.setdefault(key, {})[result["seed"]] = result["metrics"].get(metric)
    effects = {}
    for (detector, loss), by_seed in values.items():
        effect = paired_effect(by_seed, values.get((detector, BASELINE), {}))
        if effect is not None:
            effects[detector, loss] = effect
    return effects


def markdown(grid: Grid, results: Sequence[dict]) -> str:
    """The report as Markdown.

    Args:
        grid: what was to be trained.
        results: of its runs; those of others are left out.
    """
    names = {run.name for run in grid.runs}
    results = [result for result in results if result["run"] in names]
    effects = {metric: effects_of(results, metric) for metric in METRICS}
    order = list(dict.fromkeys((run.detector, run.loss) for run in grid.runs))
    rows = []
    for detector, loss in order:
        if (detector, loss) not in effects["AP"]:
            continue
        cells = [_cell(effects[metric].get((detector, loss)), loss) for metric in METRICS]
        seeds = effects["AP"][detector, loss].seeds
        rows.append([detector, loss, seeds, *cells, grid.claims.get(loss, "")])
    headers = ["detector", "loss", "seeds", *METRICS, "paper's AP"]
    text = [
        f"{len(results)} of {len(grid.runs)} trainings are finished.",
        "Rows of a baseline are means; the others are the difference to it, paired by seed, with "
        "its 95 % interval (Student's t): in bold where that leaves out 0. oLRP is an error, less "
        "is better.",
        tabulate(rows, headers, "github", disable_numparse=True),
        _power(effects["AP"]),
    ]
    return "\n\n".join(text) + "\n"


def _cell(effect: Effect | None, loss: str) -> str:
    if effect is None:
        return ""
    if loss == BASELINE:
        return f"{effect.mean:.1f}"
    if not math.isfinite(effect.low):
        return f"{effect.difference:+.1f}"
    text = f"{effect.difference:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]"
    return text if effect.verdict == "?" else f"**{text}**"


def _power(effects: Mapping[tuple[str, str], Effect]) -> str:
    losses = [effect for (_, loss), effect in effects.items() if loss != BASELINE]
    deviation = pooled_deviation(losses)
    if not deviation > 0:
        return "How much seeds differ is not known yet: that takes two of a loss."
    needed = seeds_needed(EFFECT_OF_INTEREST, deviation)
    count = f"{needed} seeds" if needed else "more than 1000 seeds"
    return (
        f"The difference of one seed has a standard deviation of {deviation:.2f} AP, of all losses "
        f"together. An effect of {EFFECT_OF_INTEREST} AP takes {count} to be found with a "
        "probability of 80 % (paired t-test, 5 %)."
    )


def forest_plot(grid: Grid, results: Sequence[dict], path: Path) -> None:
    """AP against the baseline's, with intervals, as SVG.

    Args:
        grid, results: as of :func:`markdown`.
        path: to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = {run.name for run in grid.runs}
    effects = effects_of([result for result in results if result["run"] in names], "AP")
    order = list(dict.fromkeys((run.detector, run.loss) for run in grid.runs))
    shown = [key for key in order if key in effects and key[1] != BASELINE]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.28 * max(len(shown), 1)))
    for row, key in enumerate(shown):
        effect = effects[key]
        half = effect.high - effect.difference
        color = {"+": "#1b7837", "-": "#b2182b", "?": "#555555"}[effect.verdict]
        axes.errorbar(
            effect.difference, -row, xerr=half if math.isfinite(half) else 0,
            fmt="o" if math.isfinite(half) else "x", color=color, capsize=3,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(0, -len(shown), -1), [f"{d}: {loss}" for d, loss in shown])
    axes.set_xlabel("AP - baseline's AP, mean over seeds with 95 % interval (x: one seed)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
