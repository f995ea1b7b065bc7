"""Figures of the report, as SVG to be put into a page that decides on their colours.

Everything is drawn in colours that stand for names, which are replaced by CSS afterwards: text and
axes in ``currentColor``, the i-th series in ``var(--s<i>)``. One figure thus serves light and dark
pages. Names from files are never drawn: legends are the page's.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from corrdet.measures.matching import IOU_THRESHOLDS
from corrdet.measures.ranking import RECALL_THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.path import Path as Outline

# matplotlib takes as long to import as everything else together: when a figure is drawn.

# Colours that matplotlib writes, and what they are replaced by.
TEXT, GRID = "#010101", "#020202"
NUM_STYLES = 6
# Series differ by dashes and markers too: not everybody sees the colours, or prints them.
DASHES = ((), (6, 2), (2, 1.5), (8, 2, 2, 2), (4, 1), (1, 1))
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_DOTS = 500
# A cell of the density is shaded by the last of these counts that it reaches.
DENSITY_LEVELS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
EDGES = np.linspace(0, 1, 51)
SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


def cell_counts(scores: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """Detections in the cells of the density, (IoU, score)."""
    return np.histogram2d(ious, scores, bins=(EDGES, EDGES))[0]


def density(
    scores: np.ndarray, ious: np.ndarray, name: str, *, levels: int, series: int = 0
) -> str:
    """Score against IoU of detections, with both marginals.

    Up to ``MAX_DOTS`` are dots, more are shaded cells, in steps of ``DENSITY_LEVELS``.

    Args:
        scores: (n,) in [0, 1].
        ious: (n,) in [0, 1].
        name: prefix of the ids, unique in the page.
        levels: how many of ``DENSITY_LEVELS`` there are; the last is the darkest.
        series: colour.
    """
    color = _color(series)

    def draw(figure):
        from matplotlib.patches import PathPatch

        axes = figure.subplot_mosaic(
            [["above", "."], ["main", "right"]], width_ratios=(6, 1), height_ratios=(1, 6),
            gridspec_kw={"left": 0.11, "right": 0.99, "bottom": 0.12, "top": 0.99,
                         "wspace": 0.03, "hspace": 0.03},
        )  # fmt: skip
        main = axes["main"]
        if len(scores) <= MAX_DOTS:
            main.plot(ious, scores, "o", color=color, ms=3, mew=0, alpha=0.5, clip_on=False)
        else:
            reached = np.searchsorted(DENSITY_LEVELS, cell_counts(scores, ious), side="right")
            for level in np.unique(reached[reached > 0]):
                opacity = level_opacity(level - 1, levels)
                outline = _cells(reached == level, EDGES)
                main.add_patch(PathPatch(outline, facecolor=color, alpha=opacity, lw=0))
        main.plot([0, 1], [0, 1], color=TEXT, lw=0.8, dashes=(4, 3))
        main.axvline(0.5, color=TEXT, lw=0.8, dashes=(1, 2))
        main.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="IoU with the nearest object of the class",
            ylabel="score",
        )  # fmt: skip
        for key, values in (("above", ious), ("right", scores)):
            heights = np.log10(1 + np.histogram(values, EDGES)[0])
            orientation = "vertical" if key == "above" else "horizontal"
            axes[key].stairs(heights, EDGES, fill=True, color=color, orientation=orientation)
            axes[key].axis("off")
        axes["above"].set_xlim(0, 1)
        axes["right"].set_ylim(0, 1)

    return _svg(draw, name, height=4.3, margins=False)


def level_opacity(level: int, levels: int) -> float:
    """How strongly the cells of a level of the density are painted."""
    return 1 - 0.8 * (1 - (level + 1) / levels)


def calibration_curves(
    bins: np.ndarray, means: Sequence[np.ndarray], name: str, spread: np.ndarray | None = None
) -> str:
    """Mean score in bins of IoU.

    Args:
        bins: (n + 1,) edges.
        means: of each series, (n,); NaN for empty bins.
        name: prefix of the ids.
        spread: (2, n) lower and upper end of a band around the first series.
    """
    centers = (bins[1:] + bins[:-1]) / 2

    def draw(figure):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=TEXT, lw=0.8, dashes=(4, 3))
        if spread is not None:
            axes.fill_between(centers, *spread, color=_color(0), alpha=0.18, lw=0)
        for series, values in enumerate(means):
            axes.plot(centers, values, **_style(series))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoU", ylabel="mean score")

    return _svg(draw, name)


def share_curves(shares: Sequence[np.ndarray], name: str) -> str:
    """Share of the detections that reach an IoU, in percent: of each series, (T,)."""

    def draw(figure):
        axes = figure.add_subplot()
        for series, values in enumerate(shares):
            axes.plot(IOU_THRESHOLDS, values, **_style(series))
        axes.set(
            xlim=(0.48, 0.97), xlabel="IoU of at least", ylabel="share of the detections (%)",
            ylim=(0, max(1.0, 1.08 * _largest(shares))),
        )  # fmt: skip

    return _svg(draw, name)


def bound_curves(curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], name: str) -> str:
    """AP at each IoU threshold, in percent: of each series AP, lower and upper bound, (T,) each."""

    def draw(figure):
        axes = figure.add_subplot()
        for series, (values, lower, upper) in enumerate(curves):
            axes.fill_between(IOU_THRESHOLDS, lower, upper, color=_color(series), alpha=0.2, lw=0)
            axes.plot(IOU_THRESHOLDS, values, **_style(series))
        axes.set(
            xlim=(0.48, 0.97), xlabel="IoU threshold", ylabel="AP (%)",
            ylim=(0, max(1.0, 1.05 * _largest([upper for _, _, upper in curves]))),
        )  # fmt: skip

    return _svg(draw, name)


def precision_curves(curves: Sequence[np.ndarray], name: str) -> str:
    """Precision, in percent, at COCO's recalls: of each series, (101,)."""

    def draw(figure):
        axes = figure.add_subplot()
        for series, values in enumerate(curves):
            style = {**_style(series), "marker": ""}
            axes.plot(100 * RECALL_THRESHOLDS, values, **style)
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall (%)", ylabel="precision (%)")

    return _svg(draw, name)


def operating_curves(curves: Sequence[np.ndarray], best: float, name: str) -> str:
    """Percentages against the score threshold 0:0.01:1, (101,) each, and the best threshold."""

    def draw(figure):
        axes = figure.add_subplot()
        for series, values in enumerate(curves):
            axes.plot(np.arange(101) / 100, values, **{**_style(series), "marker": ""})
        axes.axvline(best, color=TEXT, lw=0.8, dashes=(1, 2))
        axes.set(xlim=(0, 1), ylim=(0, 102), xlabel="score threshold", ylabel="percent")

    return _svg(draw, name)


def reliability_curves(
    scores: Sequence[np.ndarray], values: Sequence[np.ndarray], name: str, label: str
) -> str:
    """What detections of a mean score are worth, of each series: on the diagonal if calibrated."""

    def draw(figure):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=TEXT, lw=0.8, dashes=(4, 3))
        for series, (x, y) in enumerate(zip(scores, values, strict=True)):
            is_there = np.isfinite(x)
            axes.plot(x[is_there], y[is_there], **_style(series))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean score", ylabel=label)

    return _svg(draw, name)


def training_curves(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    name: str,
    *,
    label: str,
    bands: Sequence[tuple[np.ndarray, np.ndarray] | None] = (),
) -> str:
    """Something that is logged, against the iteration.

    Args:
        curves: of each series, iterations (n,) and values (n,); empty where a run has none.
        name: prefix of the ids.
        label: of the values.
        bands: of each series, lower and upper end (n,) of a band, or None.
    """

    def draw(figure):
        axes = figure.add_subplot()
        for series, (iterations, values) in enumerate(curves):
            axes.plot(iterations, values, **{**_style(series), "marker": "", "linewidth": 1.2})
            if series < len(bands) and bands[series] is not None:
                color = _color(series)
                axes.fill_between(iterations, *bands[series], color=color, alpha=0.18, lw=0)
        axes.set(xlabel="iteration", ylabel=label)
        # Without matplotlib's powers of ten beside the axis, which are formulas.
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.locator_params(axis="x", nbins=5)

    return _svg(draw, name, height=2.6)


def swatch(series: int, *, line: bool = True, opacity: float = 1.0) -> str:
    """A sample of a series for a legend, as SVG."""
    color = f"var(--s{series % NUM_STYLES})"
    if line:
        dashes = " ".join(map(str, DASHES[series % NUM_STYLES]))
        shape = (
            f'<path d="M1 6H31" style="stroke:{color};stroke-width:2.5;stroke-dasharray:'
            f'{dashes or "none"}"/>'
        )
    else:
        shape = f'<path d="M0 0H32V12H0Z" style="fill:{color};fill-opacity:{opacity:.2f}"/>'
    return f'<svg class="swatch" viewBox="0 0 32 12" aria-hidden="true">{shape}</svg>'


def _color(series: int) -> str:
    return f"#0300{series % NUM_STYLES:02x}"


def _style(series: int) -> dict:
    index = series % NUM_STYLES
    return {
        "color": _color(series),
        "dashes": DASHES[index] or (None, None),
        "marker": MARKERS[index],
    }


def _largest(values: Sequence[np.ndarray]) -> float:
    finite = [array[np.isfinite(array)] for array in values]
    return max((float(array.max()) for array in finite if len(array)), default=0.0)


def _cells(is_filled: np.ndarray, edges: np.ndarray) -> "Outline":
    """Outline of the cells of a grid, (n, n) bool, that are filled.

    One path of horizontal strips: a path for each cell would be ten times the size.
    """
    from matplotlib.path import Path as Outline

    steps = np.diff(np.pad(is_filled, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    row, left = np.nonzero(steps == 1)
    right = np.nonzero(steps == -1)[1]
    x1, x2, y1, y2 = edges[left], edges[right], edges[row], edges[row + 1]
    points = np.stack([x1, y1, x2, y1, x2, y2, x1, y2, x1, y1], axis=1).reshape(-1, 2)
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
    return Outline(points, codes * len(row))


def _svg(draw, name: str, *, height: float = 3.2, margins: bool = True) -> str:
    """What ``draw`` draws, as an SVG element without namespaces, metadata and size."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.5, height))
        figure.patch.set_visible(False)
        if margins:
            figure.subplots_adjust(left=0.13, right=0.96, bottom=0.41 / height, top=0.95)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg).group()
    svg = re.sub(r"<svg[^>]*>", f'<svg {box} aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    # In a page all figures share one space of ids. Those of groups are of no use there.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    # The page's own font.
    svg = re.sub(r"font: ?([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    # Coordinates to a hundredth of a point; text between the tags stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = svg.replace(TEXT, "currentColor").replace(GRID, "var(--grid)")
    svg = re.sub(r"#0300(0\d)", lambda match: f"var(--s{int(match[1])})", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
