"""Which losses go together, as a table: rewrites that of docs/losses.md from the registries.

``python tools/losses_matrix.py`` writes it, ``--check`` only says whether it is as it should be.
"""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from corrdet.files import atomic_write  # noqa: E402
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES  # noqa: E402
from corrdet.losses.registry import refusal  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "docs" / "losses.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def matrix() -> str:
    """A row per classification loss, a column per localization loss, in Markdown."""
    rows = [
        [f"`{name}`", *(cell(name, other) for other in LOCALIZATION_LOSSES)]
        for name in CLASSIFICATION_LOSSES
    ]
    return tabulate(rows, ["", *(f"`{name}`" for name in LOCALIZATION_LOSSES)], "github")


def cell(classification: str, localization: str) -> str:
    if refusal(classification, localization):
        return "no"
    refused = [name for name in COUPLINGS if refusal(classification, localization, [name])]
    return "not " + ", ".join(f"`{name}`" for name in refused) if refused else "all"


def rewritten(text: str) -> str:
    """The page with the table of now."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{matrix()}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if args.check:
        sys.exit(text != rewritten(text) and f"{PAGE} is out of date: run {sys.argv[0]}")
    with atomic_write(PAGE) as file:
        file.write(rewritten(text))


if __name__ == "__main__":
    main()
