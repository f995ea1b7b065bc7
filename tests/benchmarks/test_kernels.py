"""The benchmark on small sizes: what it writes, and that the loops compute what the kernels do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernels, report
from corrdet.ops.kernels import OPERATORS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", kernels.LOSSES)
def test_loops_agree_with_the_kernels(name):
    errors = kernels.check_agreement(kernels.LOSSES[name], "cpu")
    assert errors.keys() == {"loss", "gradient"}


def test_a_loop_that_differs_ends_the_run(monkeypatch):
    loss = kernels.LOSSES["ap"]
    monkeypatch.setattr(kernels.loops, "ap_loss", lambda *_: (torch.ones(()), torch.ones(5050)))
    with pytest.raises(SystemExit, match="AP is not what the loop computes"):
        kernels.check_agreement(loss, "cpu")


def test_every_operator_is_compared_with_its_twin(monkeypatch):
    monkeypatch.setattr(kernels, "ROUNDS", 1)
    rows = kernels.compare_twins("cpu", 20)
    assert [row["what"] for row in rows] == list(OPERATORS)
    assert all(row["seconds"] > 0 and row["baseline_seconds"] > 0 for row in rows)


def test_quick_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nbelow\n")
    options = [
        "--device", "cpu", "--threads", "1", "--quick", "--only", "ape", "iou", "growth",
        "--json", "results.json", "--plots", "plots", "--markdown", "page.md",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", *options],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"].startswith("python -m benchmarks.kernels --device cpu")
    assert results["machine"]["threads"] == 1 and results["machine"]["gpu"] is None
    assert results["agreement"].keys() == {"ape"}
    assert len(results["comparisons"]) == 3 + 8
    for row in results["comparisons"]:
        assert row["seconds"] > 0 and row["ratio"] > 0 and isinstance(row["ok"], bool)
    assert all(row["gradient_error"] < 1e-5 for row in results["comparisons"][:3])
    assert len(results["growth"]["curves"]) == 2 * len(kernels.LOSSES)
    for curve in results["growth"]["curves"]:
        assert len(curve["seconds"]) == len(curve["roofline_seconds"]) == len(curve["sizes"]) == 5
    assert results["memory"] == []
    assert "below what is demanded." in run.stdout
    assert (tmp_path / "plots" / "kernels_cpu.png").stat().st_size > 1000
    text = page.read_text()
    assert text.startswith("above\n<!-- cpu: begin -->\n") and text.endswith(
        "\n<!-- cpu: end -->\nbelow\n"
    )
    assert "old" not in text and "100 x 100000" in text


def test_what_is_above_and_below_a_demand():
    assert kernels.row("a", "1", 1.0, "b", 10.0, 8)["ok"]
    assert not kernels.row("a", "1", 2.0, "b", 10.0, 8)["ok"]
    slower = kernels.row("a", "1", 3.0, "b", 2.0, 2, at_most=True)
    assert slower["ok"] and slower["ratio"] == 1.5 and slower["demanded"] == "<= 2"


def test_slow_functions_are_called_less_often(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "seconds", lambda function, device: calls.append(1) or function())
    assert kernels.interleave("cpu", lambda: 0.1, lambda: 0.2) == [0.1, 0.2]
    assert len(calls) == 2 + 2 * kernels.ROUNDS
    calls.clear()
    assert kernels.interleave("cpu", lambda: 0.1, lambda: 5.0) == [0.1, 5.0]
    assert len(calls) == 2 + 2 + 2 * (kernels.ROUNDS // 2)


def test_a_page_without_markers_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- cpu: begin -->\n")
    with pytest.raises(SystemExit, match="has no lines <!-- cpu: begin -->"):
        report.split_at_markers(page, "cpu")
