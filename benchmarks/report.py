"""Tables and pictures of what :mod:`benchmarks.kernels` measured."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot as plt  # noqa: E402
from tabulate import tabulate  # noqa: E402

from corrdet.files import atomic_write  # noqa: E402


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def mark(ok: bool) -> str:
    return "ok" if ok else "below"


def tables(results: dict, style: str) -> str:
    """All tables and how many figures are below what is demanded.

    Args:
        results: what ``--json`` writes.
        style: format of :mod:`tabulate`.
    """

    def table(rows, headers):
        # The numbers are formatted already.
        return tabulate(rows, headers, style, disable_numparse=True)

    machine = results["machine"]
    where = f"{machine['gpu']}, " if machine["gpu"] else ""
    where += f"{machine['threads']} threads of {machine['cpu']}, torch {machine['torch']}"
    parts = [f"Machine: {where}" + (" (sizes of --quick)" if results["quick"] else "")]
    judged = list(results["comparisons"])
    if judged:
        rows = []
        for row in judged:
            error = f"{row['gradient_error']:.1e}" if "gradient_error" in row else ""
            rows.append(
                [row["what"], row["size"], milliseconds(row["seconds"]), row["baseline"],
                 milliseconds(row["baseline_seconds"]), f"{row['ratio']:.3g}", row["demanded"],
                 error, mark(row["ok"])]
            )  # fmt: skip
        headers = ["", "size", "ms", "against", "ms", "ratio", "demanded", "gradient error", ""]
        parts.append(table(rows, headers))
    parts += results["notes"]
    if results["growth"]:
        curves = results["growth"]["curves"]
        judged += curves
        for along in ("negatives", "positives"):
            chosen = [curve for curve in curves if curve["along"] == along]
            parts.append(table(list(map(curve_row, chosen)), curve_headers(chosen[0])))
        bandwidth = results["growth"]["copy_bytes_per_second"] / 1e9
        parts.append(f"Copying a large tensor reads and writes {bandwidth:.3g} GB/s.")
    if results["memory"]:
        rows = [[r["what"], r["size"], f"{r['bytes_per_sample']:.1f}"] for r in results["memory"]]
        parts.append(table(rows, ["", "size", "bytes per sample at the peak"]))
    below = sum(not row["ok"] for row in judged)
    parts.append(f"{below} of {len(judged)} below what is demanded.")
    return "\n\n".join(parts)


def curve_headers(curve: dict) -> list[str]:
    index, fixed = fixed_size(curve)
    return [
        f"ms with {fixed} and {curve['along']}", *(f"{size[index]:,}" for size in curve["sizes"]),
        "worst doubling", "demanded", "times the roofline", "",
    ]  # fmt: skip


def fixed_size(curve: dict) -> tuple[int, str]:
    """Which of positives and negatives grows, as an index, and how many there are of the other."""
    names = ("positives", "negatives")
    index = names.index(curve["along"])
    return index, f"{curve['sizes'][0][1 - index]:,} {names[1 - index]}"


def curve_row(curve: dict) -> list[str]:
    share = curve["seconds"][-1] / curve["roofline_seconds"][-1]
    return [
        curve["what"], *map(milliseconds, curve["seconds"]), f"{curve['worst_doubling']:.2f}",
        curve["demanded"], f"{share:.3g}", mark(curve["ok"]),
    ]  # fmt: skip


def plot_growth(results: dict, path: str | os.PathLike) -> None:
    """Time over the number of negatives and of positives, above the roofline."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axis, along in zip(axes, ("negatives", "positives"), strict=True):
        curves = [c for c in results["growth"]["curves"] if c["along"] == along]
        index, fixed = fixed_size(curves[0])
        for curve in curves:
            sizes = [size[index] for size in curve["sizes"]]
            axis.plot(sizes, [1000 * s for s in curve["seconds"]], "o-", label=curve["what"])
        roofline = [1000 * s for s in curves[0]["roofline_seconds"]]
        axis.plot(sizes, roofline, "--", color="black", label="roofline")
        axis.set(xscale="log", yscale="log", xlabel=along, title=f"{fixed}, forward and backward")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axis.minorticks_off()
    axes[0].set(ylabel="milliseconds")
    axes[0].legend(fontsize=8)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def split_at_markers(path: str | os.PathLike, section: str) -> tuple[str, str]:
    """What stands before and after a section of a page, such as the tables of a device.

    Raises:
        SystemExit: the markers of the section are missing.
    """
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    text = Path(path).read_text(encoding="utf-8")
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"{path} has no lines {begin} and {end} to write the tables between")
    return head + begin, end + tail


def rewrite(path: str | os.PathLike, device: str, results: dict) -> None:
    """Put the tables of this run in the place of the last one's."""
    replace(path, device, f"`{results['command']}`\n\n{tables(results, 'github')}")


def replace(path: str | os.PathLike, section: str, body: str) -> None:
    """Put text between the markers of a section, see :func:`split_at_markers`."""
    head, tail = split_at_markers(path, section)
    with atomic_write(path) as file:
        file.write(f"{head}\n{body}\n{tail}")
