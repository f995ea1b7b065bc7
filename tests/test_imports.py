"""What is imported when, each in a process of its own."""

import re
import subprocess
import sys

import pytest

from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow

HEAVY = {"torch", "detectron2", "scipy", "matplotlib", "sklearn"}


def python(*arguments) -> subprocess.CompletedProcess:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return finished


def imported_with(statement: str) -> set[str]:
    print_modules = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(python("-c", f"{statement}\n{print_modules}").stdout.split())


@pytest.mark.parametrize(
    "statement, allowed",
    [
        ("import corrdet; corrdet.add_corrdet_config, corrdet.__version__", set()),
        ("import corrdet.config, corrdet.errors, corrdet.options, corrdet.names", set()),
        ("import corrdet.env", set()),
        ("import corrdet.ops", {"torch"}),
        ("import corrdet.losses", {"torch"}),
    ],
)
def test_heavy_packages_are_imported_where_they_are_needed(statement, allowed):
    assert imported_with(statement) & HEAVY == allowed


def test_the_losses_leave_the_compiler_of_torch_alone():
    """Its import takes longer than all of theirs."""
    script = "import sys, torch; before = set(sys.modules); import corrdet.losses"
    script += "; print(*sorted(set(sys.modules) - before))"
    added = python("-c", script).stdout.split()
    foreign = [name for name in added if name.startswith(("torch._dynamo", "sympy"))]
    assert "corrdet.losses" in added and not foreign


def test_the_voc_converter_needs_neither_torch_nor_detectron2():
    finished = python("-X", "importtime", "-m", "corrdet.data.voc", "--help")
    assert "folder with the XML files" in finished.stdout
    imported = set(re.findall(r"\|\s+([A-Za-z_]\w*)", finished.stderr))
    assert "PIL" in imported and not imported & HEAVY


REGISTERED = """
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
print("digits_train" in DatasetCatalog, "CorrdetFCOS" in META_ARCH_REGISTRY)
"""


@pytest.mark.parametrize(
    "statement, expected",
    [
        ("import corrdet", "False False"),
        ("import corrdet.data", "True False"),
        ("import corrdet.modeling", "False True"),
        ("import corrdet.engine", "True True"),
        (
            "from corrdet import add_corrdet_config\nfrom detectron2.config import get_cfg\n"
            "add_corrdet_config(get_cfg())",
            "True True",
        ),
    ],
)
def test_what_is_registered_with_detectron2(statement, expected):
    assert python("-c", statement + REGISTERED).stdout.split("\n")[-2] == expected


def test_the_version_stands_in_one_place():
    version = python("-c", "import corrdet; print(corrdet.__version__)").stdout.strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert version not in (ROOT / "pyproject.toml").read_text().split("[project.optional")[0]
