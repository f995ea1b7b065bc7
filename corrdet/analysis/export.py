"""The tables of a report as CSV, Markdown and LaTeX, from the content of metrics.json."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from corrdet.coco.messages import printable
from corrdet.files import atomic_write
from corrdet.measures.bootstrap import cost_name
from corrdet.measures.operating import GRID


@dataclass(frozen=True)
class Table:
    """A table, undefined values None.

    Attributes:
        name: of the file, without its suffix.
        head: of each column.
        rows: of as many values.
    """

    name: str
    head: list[str]
    rows: list[list]


def tables(metrics: Mapping) -> list[Table]:
    """Summary, classes, errors, operating points and confused classes of all files."""
    entries = [metrics, *metrics["others"]]
    return [table for make in TABLES for table in make(entries)]


def write_tables(folder: str | os.PathLike, metrics: Mapping, form: str) -> list[str]:
    """Write a file for each table.

    Args:
        folder: where to.
        metrics: the content of metrics.json.
        form: of FORMS.

    Returns:
        paths.

    Raises:
        WriteError: a file cannot be written.
    """
    suffix, written = FORMS[form]
    paths = []
    for table in tables(metrics):
        path = os.path.join(folder, f"{table.name}.{suffix}")
        with atomic_write(path, newline="") as file:
            file.write(written(table))
        paths.append(path)
    return paths


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([table.head, *([_shown(value) for value in row] for row in table.rows)])
    return text.getvalue()


def _markdown(table: Table) -> str:
    rows = [[_rounded(value).replace("|", "\\|") for value in row] for row in table.rows]
    head = [name.replace("|", "\\|") for name in table.head]
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True) + "\n"


def _latex(table: Table) -> str:
    rows = [[_rounded(value) for value in row] for row in table.rows]
    # Needs booktabs; tabulate escapes what LaTeX would take for commands.
    return tabulate(rows, table.head, tablefmt="latex_booktabs", disable_numparse=True) + "\n"


FORMS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "csv": ("csv", _csv),
    "markdown": ("md", _markdown),
    "latex": ("tex", _latex),
}


def _shown(value) -> str:
    return "" if value is None else printable(str(value))


def _rounded(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else _shown(value)


def _summary(entries: Sequence[Mapping]) -> Iterator[Table]:
    head = ["measure"]
    for number, entry in enumerate(entries):
        head += [entry["name"], f"{entry['name']} low", f"{entry['name']} high"]
        if number:
            difference = f"{entry['name']} - {entries[0]['name']}"
            head += [difference, f"{difference} low", f"{difference} high", f"{difference} p"]
    keys = [k for k, value in entries[0].items() if isinstance(value, int | float | None)]
    rows = []
    for key in keys:
        row = [key]
        for number, entry in enumerate(entries):
            sampled = entry.get("bootstrap", {})
            row += [entry.get(key), *_bounds(sampled, "intervals", key)]
            if number:
                row += [entry["differences"].get(key), *_bounds(sampled, "differences", key)]
                row.append(sampled.get("p_values", {}).get(key))
        rows.append(row)
    yield Table("summary", head, rows)


def _bounds(sampled: Mapping, part: str, key: str) -> list:
    return list(sampled.get(part, {}).get(key) or (None, None))


def _classes(entries: Sequence[Mapping]) -> Iterator[Table]:
    keys = list(next(iter(entries[0]["per_class"].values()), {}))
    rows = [
        [name, entry["name"], *(entry["per_class"][name].get(key) for key in keys)]
        for name in entries[0]["per_class"]
        for entry in entries
    ]
    yield Table("classes", ["class", "file", *keys], rows)


def _errors(entries: Sequence[Mapping]) -> Iterator[Table]:
    if any("errors" not in entry for entry in entries):
        return
    head = ["type", "file", "number", "dAP50", "low", "high", "difference", "low", "high", "p"]
    rows = []
    for name in entries[0]["errors"]:
        for entry in entries:
            sampled, key = entry.get("bootstrap", {}), cost_name(name)
            error = entry["errors"][name]
            row = [name, entry["name"], error["count"], error["cost"]]
            row += _bounds(sampled, "intervals", key)
            row.append(entry.get("differences", {}).get(key))
            row += _bounds(sampled, "differences", key)
            rows.append([*row, sampled.get("p_values", {}).get(key)])
    yield Table("errors", head, rows)


def _operating(entries: Sequence[Mapping]) -> Iterator[Table]:
    keys = ["precision", "recall", "F1", "LRP"]
    rows = [
        [entry["name"], threshold, *(entry["operating_points"]["curves"][k][row] for k in keys)]
        for entry in entries
        for row, threshold in enumerate(GRID.tolist())
    ]
    yield Table("operating_points", ["file", "threshold", *keys], rows)


def _confusion(entries: Sequence[Mapping]) -> Iterator[Table]:
    rows = [
        [entry["name"], pair["object"], pair["detected_as"], pair["count"]]
        for entry in entries
        for pair in entry["confusion"]["pairs"]
    ]
    yield Table("confusion", ["file", "object", "detected as", "count"], rows)


TABLES = (_summary, _classes, _errors, _operating, _confusion)
