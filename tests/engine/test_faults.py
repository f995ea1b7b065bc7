"""What goes wrong in one of several processes: all end soon, and say why. With the real fault."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from corrdet.engine.stopping import STOPPED
from tests.helpers.disks import small_disk
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow

TWO = ("--num-gpus", "2", "--dist-url", "auto")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def command(tiny_command, tmp_path):
    """Function of flags, overrides and options of torchrun: words of a command with the faults."""

    def words(*overrides, flags=TWO, launcher=(), output=tmp_path / "out"):
        flags = [*flags, "--import", ROOT / "tests/helpers/faults.py"]
        common = ("MODEL.CRITERION.COUPLINGS", "('fault',)", "SEED", 3, "SOLVER.MAX_ITER", 6)
        python, *rest = tiny_command(
            output, *common, "DATASETS.TEST", "()", *overrides, flags=flags
        )
        return [python, *launcher, *rest]

    return words


def run(words, fault="", **environment):
    environment = {**os.environ, "FAULT": fault, **environment}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=180)


def test_a_loss_of_one_process(command, tmp_path):
    finished = run(command(), "loss")
    assert finished.returncode == 1 and "Traceback" not in finished.stdout + finished.stderr
    own = re.search(
        r"^error: rank 1: training stopped at iteration 2: loss_fault is nan\n(.*)\n",
        finished.stderr,
        re.MULTILINE,
    )
    other = re.search(
        r"^error: rank 0: stopped, as rank 1 failed: training stopped at iteration 2: loss_fault "
        r"is nan\n(.*)\n",
        finished.stderr,
        re.MULTILINE,
    )
    assert own[1] == other[1] and own[1].count(".jpg") == 1


def test_a_gradient_of_one_process(command, tmp_path):
    finished = run(command("SOLVER.CHECKPOINT_PERIOD", 2), "gradient")
    assert finished.returncode == 1 and "Traceback" not in finished.stdout + finished.stderr
    lines = re.findall(r"^(?:error|images).*", finished.stderr, re.MULTILINE)
    message = r"training stopped at iteration 2: the losses are finite, but the gradient of \d+ of"
    assert sum(bool(re.match(f"error: rank 1: {message}", line)) for line in lines) == 1
    rank_0 = f"error: rank 0: stopped, as rank 1 failed: {message}"
    assert sum(bool(re.match(rank_0, line)) for line in lines) == 1
    assert len({line for line in lines if line.startswith("images")}) == 1
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize("launcher", [(), TORCHRUN])
def test_a_bug_in_one_process(command, launcher):
    finished = run(command(flags=() if launcher else TWO, launcher=launcher), "bug")
    assert finished.returncode == 1
    assert "KeyError: 'a bug'" in finished.stderr and "Traceback" in finished.stderr
    assert "error: rank 0: stopped, as rank 1 failed: KeyError: 'a bug'" in finished.stderr


def test_a_loader_of_one_process(command):
    finished = run(command(), "loader")
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "error: rank 1: an image cannot be read\n" in finished.stderr
    assert "error: rank 0: stopped, as rank 1 failed: an image cannot be read" in finished.stderr


def test_an_evaluation_that_fails_in_one_process(command):
    finished = run(command("DATASETS.TEST", "('tiny_val',)"), "evaluation")
    assert finished.returncode == 1
    message = "error: rank 0: stopped, as rank 1 failed: ValueError: no evaluation here"
    assert message in finished.stderr


def test_a_process_without_images_to_test(command):
    finished = run(command("DATASETS.TEST", "('tiny_val',)", "SOLVER.MAX_ITER", 2), "unequal")
    assert finished.returncode == 0, finished.stderr


def test_a_process_that_is_killed(command):
    finished = run(command(), "killed")
    assert finished.returncode == 1
    message = "error: rank 1 was killed by SIGKILL: the machine was out of memory, perhaps\n"
    assert message in finished.stderr
    assert "error: rank 0: stopped, as the connection to another process is lost" in finished.stderr
    assert "Traceback" not in finished.stderr


class TestStopping:
    @pytest.fixture(scope="class")
    def uninterrupted(self, tmp_path_factory):
        return tmp_path_factory.mktemp("uninterrupted") / "out"

    def test_a_signal_to_one_process_stops_all_and_resuming_is_exact(
        self, command, uninterrupted, tmp_path
    ):
        out = tmp_path / "out"
        assert run(command(output=uninterrupted)).returncode == 0
        finished = run(command("DATALOADER.NUM_WORKERS", 1), "SIGUSR1")
        assert finished.returncode == STOPPED, finished.stderr
        assert "SIGUSR1: stopped after iteration 4; --resume goes on" in finished.stdout
        assert (out / "last_checkpoint").read_text() == "model_0000004.pth"
        finished = run(command(flags=[*TWO, "--resume"]))
        assert finished.returncode == 0
        assert weights(out).keys() == weights(uninterrupted).keys()
        for name, value in weights(uninterrupted).items():
            assert torch.equal(value, weights(out)[name]), name
        assert curve(out) == curve(uninterrupted)

    @pytest.mark.parametrize("fault", ["SIGTERM", "parent"])
    def test_by_the_process_that_started_them(self, command, fault, tmp_path):
        flags = TWO if fault == "parent" else ()
        finished = run(command(flags=flags), fault)
        assert finished.returncode == STOPPED, finished.stderr
        assert (tmp_path / "out/last_checkpoint").is_file()

    def test_elastic(self, command, uninterrupted, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        # Of an earlier training: it is moved aside, and not resumed.
        shutil.copy(uninterrupted / "model_final.pth", out)
        (out / "last_checkpoint").write_text("model_final.pth")
        words = command(
            *("SOLVER.CHECKPOINT_PERIOD", 2), flags=(), launcher=[*TORCHRUN, "--max-restarts", "1"]
        )
        finished = run(words, "killed")
        assert finished.returncode == 0, finished.stderr
        assert (out / "previous_1/last_checkpoint").is_file()
        assert (out / "model_0000001.pth").is_file()
        for name, value in weights(uninterrupted).items():
            assert torch.equal(value, weights(out)[name]), name
        assert curve(out) == curve(uninterrupted)


@pytest.mark.parametrize("period", [2, 100], ids=["checkpoint", "evaluation"])
def test_a_full_disk(command, period, tmp_path):
    out, size = tmp_path / "out", 3 * 2**20
    environment = {**os.environ, "FAULT": ""}
    with small_disk(out, size, 300_000 if period == 100 else size) as limit:
        words = command(
            *("SOLVER.CHECKPOINT_PERIOD", period, "TEST.EVAL_PERIOD", 2),
            *("DATASETS.TEST", "('tiny_val',)", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.001),
            flags=(),
        )
        finished = subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=environment,
            timeout=180,
            preexec_fn=limit,
        )
        assert finished.returncode == 1
        assert re.search("^error: .* was not written: (No space|File too)", finished.stderr, re.M)
        assert "Traceback" not in finished.stderr
        assert not list(out.glob("*.pth")) and not list(out.glob(".*.tmp"))
        assert not (out / "last_checkpoint").exists()


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if "time" not in name and name != "eta_seconds"
        }
        for line in lines
    ]


def test_one_training_at_a_time_in_a_folder(command, tmp_path):
    waits = tmp_path / "waits"
    environment = {**os.environ, "FAULT": "waits", "WAITS": str(waits)}
    words = command("DATALOADER.NUM_WORKERS", 1, flags=())
    first = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while not waits.exists() and time.monotonic() < end:
            time.sleep(0.1)
        second = run(words)
        assert second.returncode == 1
        message = (
            rf"error: OUTPUT_DIR '.*out' is that of a training that runs \(process {first.pid} "
        )
        assert re.search(f"^{message}", second.stderr, re.MULTILINE)
        # An evaluation would write files of the same names.
        before = (tmp_path / "out/config.yaml").read_text()
        evaluation = run(command("MODEL.WEIGHTS", ROOT / "README.md", flags=["--eval-only"]))
        assert evaluation.returncode == 1
        assert re.search(f"^{message}", evaluation.stderr, re.MULTILINE)
        assert (tmp_path / "out/config.yaml").read_text() == before
        assert not (tmp_path / "out/previous_1").exists()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    # A lock of a process that is gone blocks nobody, and its metrics are another training's.
    (tmp_path / "out/metrics.json").write_text('{"iteration": 1, "total_loss": 9}\n')
    third = run(command(flags=["--resume"]))
    assert third.returncode == 0, third.stderr
    assert Path(tmp_path / "out/previous_1/metrics.json").is_file()
    assert all(line.get("total_loss") != 9 for line in curve(tmp_path / "out"))
