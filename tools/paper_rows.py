"""Which rows of the papers' tables the configs are: their headers, read."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PAPERS = ("Thesis", "APE", "HarmonicDet", "IoU-balanced", "Association", "RS", "BRS")
_ROW = re.compile(
    rf"# ({'|'.join(PAPERS)}), ((?:Table|Sec\.) [IVX\d.]+|README), (.+): "
    r"(?:((?:mask )?AP \d\d\.\d) on (COCO val|COCO test-dev|VOC 2007 test)|no AP is reported)\."
)


class PaperRow(NamedTuple):
    """A row of a paper's table.

    Attributes:
        paper: of PAPERS.
        table: such as "Table 5.1", or the section where no table has it; "README" of its code.
        row: what the row is called there, and which other tables have it.
        ap: such as "AP 37.5" or "mask AP 28.3", in percent; None where none is reported.
        data: what the AP was measured on; None without one.
    """

    paper: str
    table: str
    row: str
    ap: str | None
    data: str | None


def row_configs() -> list[Path]:
    """The configs that are for users to train: no bases, and not those for two CPU cores."""
    return sorted(
        path
        for path in CONFIGS.rglob("*.yaml")
        if path.parent.name not in ("quick", "photographs") and not path.name.startswith("Base-")
    )


def rows_of(path: Path) -> list[PaperRow]:
    """The rows that the header of a config names: its first lines, each a row.

    Raises:
        ValueError: the first line is none.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _ROW.fullmatch(line)
        if match is None:
            break
        rows.append(PaperRow(*match.groups()))
    if not rows:
        raise ValueError(
            f"{path}: expected a first line such as '# Thesis, Table 5.1, RetinaNet: AP 36.5 on "
            f"COCO val.', of one of the papers {', '.join(PAPERS)}"
        )
    return rows


def notes_of(path: Path) -> str:
    """What the header says beside the rows, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()[len(rows_of(path)) :]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).strip()
