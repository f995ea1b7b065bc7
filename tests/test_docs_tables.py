"""The tables of the docs that are made from the code are those of the code."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from corrdet.config_keys import SECTIONS
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.losses.from_config import criterion_sections

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "docs_tables.py"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The tool, on copies of the pages."""
    spec = importlib.util.spec_from_file_location("docs_tables", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("LOSSES", "CONFIG", "README", "RESULTS"):
        page = getattr(module, name)
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(module, name, copy)
    return module


@pytest.mark.slow
def test_they_are_up_to_date():
    """``make docs-tables`` writes them."""
    checked = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("name", "fact"),
    [("LOSSES", "0.0798"), ("CONFIG", "0.0798"), ("README", "`ghm_c`"), ("RESULTS", "AP 37.5")],
)
def test_pages_that_are_not_are_found_and_mended(tables, monkeypatch, name, fact):
    page = getattr(tables, name)
    text = page.read_text(encoding="utf-8")
    assert fact in text
    page.write_text(text.replace(fact, ""), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [TOOL.name, "--check"])
    with pytest.raises(SystemExit, match=f"^{page.name} is out of date: run make docs-tables"):
        tables.main()
    monkeypatch.setattr(sys, "argv", [TOOL.name])
    tables.main()
    assert page.read_text(encoding="utf-8") == text
    monkeypatch.setattr(sys, "argv", [TOOL.name, "--check"])
    tables.main()


def test_every_loss_and_option_is_in_its_table(tables):
    general = {"global_batch", "memory"}  # described once
    for registry, table in (
        (CLASSIFICATION_LOSSES, tables.classification_table()),
        (LOCALIZATION_LOSSES, tables.localization_table()),
        (COUPLINGS, tables.couplings_table()),
    ):
        for name, loss in registry.items():
            (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
            assert loss.definition in row and loss.source in row
            for option in loss.options.keys() - general:
                assert f"`{option.upper()}`" in row, (name, option)


def test_every_key_is_in_the_page_of_the_config(tables):
    page = tables.config_page()
    for section, keys in SECTIONS.items():
        part = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
        for key in keys:
            assert f"| `{key}` |" in part, (section, key)
    for section, keys in criterion_sections().items():
        prefix = section.removeprefix("MODEL.CRITERION").lstrip(".")
        if section.startswith("MODEL.RPN_CRITERION"):
            continue  # the same keys
        for key in keys:
            weights = "." in section and key in ("WEIGHT", "WARMUP_ITERS", "SCHEDULE")
            names = {f"{prefix}.{key}".lstrip("."), *([key] if weights else [])}
            assert any(f"| `{name}` |" in page for name in names), (section, key)
