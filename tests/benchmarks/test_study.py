"""The study on a small grid: what is run, skipped, resumed, and what is said of the results."""

import json
import math
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from benchmarks.study import grid as grids
from benchmarks.study import running
from benchmarks.study.__main__ import main
from benchmarks.study.grid import GridError, read_grid
from benchmarks.study.report import markdown
from benchmarks.study.running import StudyError, read_results, run_all
from benchmarks.study.statistics import (
    paired_effect,
    pooled_deviation,
    power,
    seeds_needed,
)
from corrdet.engine import load_config

STUDIES = sorted(Path("benchmarks/study").glob("*.yaml"))
# Writes what train_net.py would: AP is 10 * seed, and 1 more with the coupling. Counts its starts.
TRAIN_NET = """
    import json, sys
    from pathlib import Path
    words = dict(zip(sys.argv[4::2], sys.argv[5::2]))
    output = Path(words["OUTPUT_DIR"])
    starts = output / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    if words.get("FAIL") == words["SEED"] and len(starts.read_text()) == 1:
        sys.exit("a failure")
    ap = 10.0 * int(words["SEED"]) + ("COUPLING" in words)
    (output / "model_final.pth").write_text("")
    (output / "metrics.json").write_text(json.dumps({"bbox/AP": ap, "bbox/AP50": 2 * ap}) + "\\n")
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a config and a train_net.py that takes no time."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "train_net.py").write_text(textwrap.dedent(TRAIN_NET))
    (root / "base.yaml").write_text("SEED: 1\n")
    (root / "a.yaml").write_text("_BASE_: base.yaml\n# a remark\n")
    for module in (grids, running):
        monkeypatch.setattr(module, "ROOT", root)
    return root


def write_grid(path, **changes):
    content = {
        "name": "tiny",
        "seeds": [1, 2],
        "detectors": {"net": {"config": "a.yaml"}},
        "losses": {"baseline": {}, "coupled": {"opts": {"COUPLING": 1}, "claim": "+1.0"}},
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def starts(folder) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in folder.glob("*/starts")}


class TestRunning:
    def test_what_is_finished_is_skipped(self, repository, tmp_path):
        grid = read_grid(write_grid(tmp_path / "grid.yaml"))
        folder = tmp_path / "study"
        assert run_all(grid.runs, folder, processes=2, threads=1) == {}
        assert run_all(grid.runs, folder, processes=2, threads=1) == {}
        assert set(starts(folder).values()) == {1} and len(starts(folder)) == 4
        results = {result["run"]: result for result in read_results(folder)}
        assert results.keys() == {run.name for run in grid.runs}
        result = results[grid.runs[3].name]
        assert (result["detector"], result["loss"], result["seed"]) == ("net", "coupled", 2)
        assert result["metrics"]["AP"] == 21 and result["metrics"]["oLRP"] is None
        assert {"commit", "torch", "corrdet", "seconds", "finished"} <= result.keys()
        assert not list(folder.glob("*/model_*.pth"))
        # More seeds later: only these.
        more = read_grid(write_grid(tmp_path / "grid.yaml", seeds=[1, 2, 3]))
        run_all(more.runs, folder, processes=1, threads=1)
        assert set(starts(folder).values()) == {1} and len(starts(folder)) == 6

    def test_what_has_failed_is_said_and_done_again(self, repository, tmp_path):
        grid = read_grid(write_grid(tmp_path / "grid.yaml", opts={"FAIL": 2}))
        folder = tmp_path / "study"
        failures = run_all(grid.runs, folder, processes=2, threads=1)
        assert failures.keys() == {run.name for run in grid.runs if run.seed == 2}
        assert all("exit status 1: a failure" in why for why in failures.values())
        assert len(read_results(folder)) == 2
        assert run_all(grid.runs, folder, processes=2, threads=1) == {}
        assert len(read_results(folder)) == 4

    def test_a_run_of_another_process_is_left_to_it(self, repository, tmp_path):
        grid = read_grid(write_grid(tmp_path / "grid.yaml"))
        folder = tmp_path / "study"
        folder.mkdir()
        lock = folder / f".{grid.runs[0].name}.lock"
        code = f"""
            import portalocker, sys
            file = open({str(lock)!r}, "a")
            portalocker.lock(file, portalocker.LOCK_EX)
            print("locked", flush=True)
            sys.stdin.read()
        """
        other = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            other.stdout.readline()
            run_all(grid.runs, folder, processes=1, threads=1)
            assert grid.runs[0].name not in starts(folder) and len(starts(folder)) == 3
        finally:
            other.kill()
            other.wait()
        # It has died without a result.
        run_all(grid.runs, folder, processes=1, threads=1)
        assert starts(folder)[grid.runs[0].name] == 1

    def test_another_config_is_another_run(self, repository, tmp_path):
        path = write_grid(tmp_path / "grid.yaml")
        before = {run.name for run in read_grid(path).runs}
        (repository / "a.yaml").write_text("_BASE_: base.yaml\n# another remark\n")
        assert {run.name for run in read_grid(path).runs} == before
        (repository / "base.yaml").write_text("SEED: 2\n")
        assert not {run.name for run in read_grid(path).runs} & before

    def test_the_command(self, repository, tmp_path, capsys):
        arguments = [str(write_grid(tmp_path / "grid.yaml")), "--folder", str(tmp_path / "study")]
        assert main([*arguments, "--dry-run"]) == 0
        assert "4 runs, 4 of them missing" in capsys.readouterr().out
        assert main([*arguments, "--processes", "2"]) == 0
        assert main([*arguments, "--report"]) == 0
        assert "| net" in (tmp_path / "study" / "report.md").read_text()
        assert "<svg" in (tmp_path / "study" / "effects.svg").read_text()

    def test_a_damaged_result_is_one_line(self, tmp_path):
        (tmp_path / "results.jsonl").write_text('{"run": "a", "metr')
        with pytest.raises(StudyError, match="line 1, is no result"):
            read_results(tmp_path)


class TestGrid:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"losses": {"coupled": {}}}, "expected a loss named 'baseline', got coupled"),
            ({"detectors": {"net": {"config": "b.yaml"}}}, "net: no config 'b.yaml'"),
            (
                {"detectors": {"net": {"config": "a.yaml", "losses": ["none"]}}},
                "net takes 'none', which is no loss of the grid",
            ),
            ({"seed": 1}, "expected the keys detectors, losses, name, opts, seeds, got"),
        ],
    )
    def test_what_is_no_grid(self, repository, tmp_path, changes, message):
        with pytest.raises(GridError, match=message):
            read_grid(write_grid(tmp_path / "grid.yaml", **changes))
        with pytest.raises(GridError, match="was not read"):
            read_grid(tmp_path / "absent.yaml")

    def test_every_loss_has_a_seed_before_any_has_two(self, repository, tmp_path):
        grid = read_grid(write_grid(tmp_path / "grid.yaml"))
        assert [(run.loss, run.seed) for run in grid.runs] == [
            ("baseline", 1), ("coupled", 1), ("baseline", 2), ("coupled", 2)
        ]  # fmt: skip

    @pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
    def test_all_trainings_can_be_done(self, path):
        runs = [run for run in read_grid(path).runs if run.seed == 1]
        assert runs
        for run in runs:
            cfg = load_config(Namespace(config_file=run.config, opts=list(run.opts)))
            assert cfg.SOLVER.MAX_ITER == 500


class TestStatistics:
    def test_paired_by_seed(self):
        # Differences 1, 2, 3: mean 2, deviation 1, t of 2 degrees 4.303.
        effect = paired_effect({1: 11, 2: 22, 3: 33, 4: 50}, {1: 10, 2: 20, 3: 30})
        assert (effect.mean, effect.difference, effect.seeds) == (22, 2, 3)
        assert effect.high - 2 == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
        assert effect.low == pytest.approx(4 - effect.high)
        assert effect.verdict == "?"
        assert paired_effect({1: 11, 2: 21.1, 3: 31}, {1: 10, 2: 20, 3: 30}).verdict == "+"
        assert paired_effect({1: 9, 2: 18.9, 3: 29}, {1: 10, 2: 20, 3: 30}).verdict == "-"

    def test_one_seed_says_nothing(self):
        effect = paired_effect({1: 11.0, 2: None}, {1: 10.0, 2: 1.0})
        assert effect.difference == 1 and math.isinf(effect.high) and effect.verdict == "?"
        assert paired_effect({1: 1.0}, {2: 1.0}) is None
        assert math.isnan(pooled_deviation([effect]))

    def test_power(self):
        # Textbook: 34 pairs for an effect of half a deviation, 5 %, 80 %.
        assert seeds_needed(0.5, 1.0) == 34
        assert power(0.5, 1.0, 34) >= 0.8 > power(0.5, 1.0, 33)
        assert seeds_needed(0.01, 1.0) is None
        assert power(0.0, 1.0, 10) == pytest.approx(0.05)


def test_report(repository, tmp_path):
    grid = read_grid(write_grid(tmp_path / "grid.yaml", seeds=[1, 2, 3]))
    results = []
    for run in grid.runs:
        ap = 10.0 * run.seed + (run.loss == "coupled") * (1 + 0.01 * run.seed)
        metrics = {"AP": ap, "AP50": None}
        line = {"run": run.name, "detector": run.detector, "loss": run.loss, "seed": run.seed}
        results.append({**line, "metrics": metrics})
    stranger = {**results[0], "run": "another", "metrics": {"AP": 1000.0}}
    text = markdown(grid, [*results, stranger])
    assert "6 of 6 trainings are finished" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["net", "baseline", "3", "20.0", "", "", "", "", "", ""] in rows
    (row,) = (row for row in rows if row[1:2] == ["coupled"])
    assert row[3] == "**+1.0 [+1.0, +1.0]**" and row[-1] == "+1.0"
    assert "An effect of 0.5 AP takes 2 seeds" in text
    assert json.dumps(results)
