"""What of the docs is made from the code and the configs.

That is docs/losses.md's tables, docs/config.md, README's names, and docs/results.md's list of rows.

``python tools/docs_tables.py`` (``make docs-tables``) writes them, ``--check`` only says which are
out of date.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from corrdet.config import add_corrdet_config  # noqa: E402
from corrdet.config_keys import ABOUT, SECTIONS  # noqa: E402
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES  # noqa: E402
from corrdet.losses.from_config import CRITERIA, criterion_sections  # noqa: E402
from corrdet.losses.global_batch import GLOBAL_BATCH_OPTIONS  # noqa: E402
from corrdet.losses.registry import REGISTRIES, LossRegistry, RegisteredLoss  # noqa: E402
from corrdet.losses.weight import WEIGHT_OPTIONS, Weight  # noqa: E402
from corrdet.options import Key  # noqa: E402
from tools.paper_rows import CONFIGS, PAPERS, row_configs, rows_of  # noqa: E402

LOSSES = ROOT / "docs" / "losses.md"
CONFIG = ROOT / "docs" / "config.md"
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def shown(value: Any) -> str:
    """A default as one would write it in a config."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value or "''"
    return str(value)


def in_order(registry: LossRegistry) -> list[tuple[str, RegisteredLoss]]:
    """Losses per sample first, each kind by name."""
    return sorted(registry.items(), key=lambda item: (not item[1].per_sample, item[0]))


def options(loss: RegisteredLoss) -> str:
    """With their defaults; those that several losses share are described once."""
    shown_options = [
        f"`{option.upper()}` {shown(key.default)}"
        for option, key in loss.options.items()
        if option not in GLOBAL_BATCH_OPTIONS
    ]
    if loss.weight != Weight.value:
        shown_options.append(f"`WEIGHT` {shown(loss.weight)}")
    return ", ".join(shown_options)


def yes(value: bool) -> str:
    return "yes" if value else "no"


def classification_table() -> str:
    header = ["name", "definition", "options", "per sample", "when to use it", "source"]
    return table(
        header,
        (
            [
                f"`{name}`",
                loss.definition,
                options(loss),
                yes(loss.per_sample),
                loss.use,
                loss.source,
            ]
            for name, loss in in_order(CLASSIFICATION_LOSSES)
        ),
    )


def localization_table() -> str:
    header = ["name", "definition", "options", "per positive", "of", "bounded", "source"]
    return table(
        header,
        (
            [
                f"`{name}`",
                loss.definition,
                options(loss),
                yes(loss.per_sample),
                "deltas" if loss.needs_deltas else "boxes",
                yes(loss.bounded),
                loss.source,
            ]
            for name, loss in in_order(LOCALIZATION_LOSSES)
        ),
    )


def couplings_table() -> str:
    header = ["name", "definition", "options", "gradient reaches", "when to use it", "source"]
    return table(
        header,
        (
            [f"`{name}`", loss.definition, options(loss), loss.reaches, loss.use, loss.source]
            for name, loss in in_order(COUPLINGS)
        ),
    )


# The columns of the matrix of detectors and losses: those of one column have the same losses.
REGION_PROPOSALS = "CorrdetRPN"
DETECTORS = {
    "RetinaNet, ATSS, PAA, FoveaBox": (
        "CorrdetRetinaNet", "CorrdetATSS", "CorrdetPAA", "CorrdetFoveaBox",
    ),
    "FCOS": ("CorrdetFCOS",),
    "SSD, DSSD, RefineDet": ("CorrdetSSD", "CorrdetDSSD", "CorrdetRefineDet"),
    "YOLACT": ("CorrdetYOLACT",),
    "Faster, Mask, Cascade R-CNN": ("CorrdetRCNN",),
    "region proposals": (REGION_PROPOSALS,),
    "Sparse R-CNN": ("CorrdetSparseRCNN",),
    "DETR": ("CorrdetDETR",),
}  # fmt: skip
NO_BACKGROUND = "[1]"
NO_DELTAS = "[2]"


def detectors() -> str:
    """Which losses detectors have: a row for each loss, a column for detectors of the same."""
    rows = []
    for registry in REGISTRIES:
        for name, loss in in_order(registry):
            cells = [
                {detector_cell(detector, loss) for detector in names}
                for names in DETECTORS.values()
            ]
            assert all(len(cell) == 1 for cell in cells), f"one column has several: {name}, {cells}"
            rows.append([f"`{name}`", *(cell.pop() for cell in cells)])
    return table(["", *DETECTORS], rows)


def detector_cell(detector: str, loss: RegisteredLoss) -> str:
    """Whether a detector can be trained with a loss, and if not, why; in one word."""
    from detectron2.modeling import META_ARCH_REGISTRY

    from corrdet.modeling.core.config_checks import default_config

    key, activation, has_deltas = None, "sigmoid", True
    if detector != REGION_PROPOSALS:
        facts = META_ARCH_REGISTRY.get(detector)
        key, activation = facts.activation_key, facts.activation_of(default_config())
        has_deltas = facts.regresses_deltas
    if loss.needs_deltas and not has_deltas:
        return NO_DELTAS
    if activation in loss.activations:
        return "yes"
    return f"`{loss.activations[0]}`" if key else NO_BACKGROUND


TABLES = {
    "classification": classification_table,
    "localization": localization_table,
    "couplings": couplings_table,
    "detectors": detectors,
}


def losses_page(page: str) -> str:
    """docs/losses.md with the tables of now between their marks."""
    for name, make in TABLES.items():
        page = replaced(page, name, make())
    return page


def replaced(page: str, name: str, part: str) -> str:
    """A page with a part of now between its marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"expected {begin} and {end} in a page that has the part")
    return f"{head}{begin}\n{part}\n{end}{tail}"


def names_table() -> str:
    """The names of all losses, for the README."""
    rows = [
        (kind, ", ".join(f"`{name}`" for name, _ in in_order(registry)))
        for kind, registry in (
            ("classification", CLASSIFICATION_LOSSES),
            ("localization", LOCALIZATION_LOSSES),
            ("couplings", COUPLINGS),
        )
    ]
    return table(["", "names"], rows)


def rows_table() -> str:
    """The rows of the papers that there are configs for, paper by paper as in the papers."""
    found = [(row, path) for path in row_configs() for row in rows_of(path)]
    found.sort(key=lambda item: (PAPERS.index(item[0].paper), item[0].table, item[1]))
    return table(
        ["paper", "table", "row", "there", "config"],
        (
            [
                row.paper,
                row.table,
                row.row,
                f"{row.ap}, {row.data}" if row.ap else "",
                f"[{path.stem}](../configs/{path.relative_to(CONFIGS)})",
            ]
            for row, path in found
        ),
    )


def keys_table(keys: dict[str, Key]) -> str:
    rows = (
        [f"`{name}`", f"`{shown(key.default)}`", key.range.expected, key.line]
        for name, key in keys.items()
    )
    return table(["key", "default", "must be", "what it is"], rows)


def config_page() -> str:
    """docs/config.md: every key that corrdet adds to Detectron2's."""
    parts = [
        "# The config\n\nWhat corrdet adds to [Detectron2's keys]"
        "(https://detectron2.readthedocs.io/en/latest/modules/config.html).\n"
        "Values out of their range are refused before training, with the name of the key, where a "
        "run uses them.\n"
        "`make docs-tables` writes this page from the declarations, each beside the code that "
        "reads the key.",
        *criterion_parts(),
    ]
    for section in sorted(SECTIONS):
        about = f"{ABOUT[section]}\n\n" if section in ABOUT else ""
        # Not in the order of declaration, which is that of imports.
        keys = dict(sorted(SECTIONS[section].items()))
        parts.append(f"## {section}\n\n{about}{keys_table(keys)}")
    return "\n\n".join(parts) + "\n"


def criterion_parts() -> list[str]:
    """The keys of the Criterions; those of each loss once."""
    sections = criterion_sections()
    (node, (about, _)), *others = CRITERIA.items()
    parts = [
        f"## MODEL.{node}\n\nNames {about}; [losses.md](losses.md) says which there are.\n"
        f"The keys of the loss `some_loss` are those of the node `MODEL.{node}.SOME_LOSS`.",
        keys_table(sections[f"MODEL.{node}"]),
    ]
    for other, (about, classification) in others:
        parts.append(
            f"`MODEL.{other}` names {about}.\nIt has all of these keys, too; by default its "
            f"`CLASSIFICATION` is\n`{classification}`."
        )
    for title, registry in (
        ("Classification losses", CLASSIFICATION_LOSSES),
        ("Localization losses", LOCALIZATION_LOSSES),
        ("Couplings", COUPLINGS),
    ):
        keys = {
            f"{name.upper()}.{option.upper()}": key
            for name, loss in in_order(registry)
            for option, key in loss.options.items()
        }
        parts.append(f"### {title}\n\n{keys_table(keys)}")
    weights = ", ".join(
        f"{shown(loss.weight)} of `{name}`"
        for name, loss in in_order(COUPLINGS)
        if loss.weight != Weight.value
    )
    keys = {name.upper(): key for name, key in WEIGHT_OPTIONS.items()}
    parts.append(f"Every coupling also has these; the weight is {weights}.\n\n{keys_table(keys)}")
    return parts


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    from detectron2.config import get_cfg

    add_corrdet_config(get_cfg())  # imports all that declares keys
    return {
        LOSSES: losses_page(LOSSES.read_text(encoding="utf-8")),
        CONFIG: config_page(),
        README: replaced(README.read_text(encoding="utf-8"), "losses", names_table()),
        RESULTS: replaced(RESULTS.read_text(encoding="utf-8"), "rows", rows_table()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    args = parser.parse_args()
    for path, page in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == page:
            continue
        if args.check:
            sys.exit(f"{path.name} is out of date: run make docs-tables")
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
