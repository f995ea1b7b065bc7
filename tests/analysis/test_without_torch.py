"""The measuring half needs neither PyTorch nor Detectron2."""

import json
import re
import subprocess
import sys

import pytest

from tests.helpers.problems import random_problem
from tests.helpers.training import ROOT

# Refuses these modules as if they were not installed. Whether Detectron2 is, can be asked.
WITHOUT = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "iopath"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuses())
sys.modules["detectron2"] = None
"""


def python(code: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_gives_the_same(tmp_path):
    content, rows = random_problem(0, images=20)
    for name, data in (("gt", content), ("a", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    written = {}
    for name, start in (("with", ""), ("without", WITHOUT)):
        arguments = [
            "--ground-truth", tmp_path / "gt.json", "--detections", tmp_path / "a.json",
            "--output", tmp_path / name, "--bootstrap", "100",
        ]  # fmt: skip
        done = python(f"{start}from corrdet.analysis.__main__ import main; main()", *arguments)
        assert done.returncode == 0, done.stderr
        # Nothing is said of what is missing.
        bars = ("reading and matching", "bootstrap")
        assert all(line.startswith(bars) for line in done.stderr.split("\n") if line.strip())
        # But for when and where to.
        written[name] = {
            path.name: re.sub(
                r"\d{4}-\d\d-\d\dT[\d:]{8}", "", path.read_text().replace(f"/{name} ", "/")
            )
            for path in (tmp_path / name).iterdir()
        }
    assert written["with"].keys() == {"metrics.json", "report.html"}
    assert written["without"] == written["with"]


@pytest.mark.parametrize(
    "module",
    [
        "corrdet.coco",
        "corrdet.measures",
        "corrdet.report",
        "corrdet.analysis.metrics",
        "corrdet.data.voc",
        "corrdet.files",
    ],
)
def test_modules(module):
    done = python(f"{WITHOUT}import {module}")
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_scipy_and_matplotlib_wait_until_they_are_used():
    done = python(
        f"{WITHOUT}import corrdet.analysis.__main__; print({{'scipy', 'matplotlib'}} & "
        "sys.modules.keys())"
    )
    assert done.stdout.strip() == "set()", done.stderr
