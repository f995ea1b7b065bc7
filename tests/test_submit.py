"""tools/submit.py, with submitit's local executor in place of Slurm."""

import os
import signal
import time
from pathlib import Path

import pytest

from tools import submit as tool

pytestmark = pytest.mark.slow


def test_a_job_that_is_interrupted_goes_on(tiny_command, tmp_path, monkeypatch):
    output = tmp_path / "out"
    command = tiny_command(
        output, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 3000, "SOLVER.CHECKPOINT_PERIOD", 1000
    )
    arguments = command[2:]
    words = [
        *("--cluster", "local", "--cpu", "--processes", "2", "--folder", str(tmp_path / "logs")),
        *("--minutes", "5", "--", *arguments),
    ]
    monkeypatch.setattr(tool, "REQUEUE", 2)
    job = tool.submit(tool.argument_parser().parse_args(words))
    try:
        wait_for(lambda: "eta" in text(output / "log.txt"), job)
        for task in tasks(job):
            os.kill(task, signal.SIGUSR2)  # as a cluster does before it takes the machine away
        wait_for(lambda: "Starting training from iteration" in after_the_stop(output), job)
    finally:
        job.cancel()
    log = text(output / "log.txt")
    assert "2 processes, backend gloo" in log
    stopped = int(log.split("SIGTERM: stopped after iteration ")[1].split(";")[0])
    assert f"Starting training from iteration {stopped + 1}\n" in after_the_stop(output)
    assert (output / "last_checkpoint").read_text() == f"model_{stopped:07d}.pth"


def tasks(job) -> list[int]:
    """Processes of the local executor's job; what starts them has the job's number."""
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text()
    return [int(child) for child in children.split()]


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def after_the_stop(output: Path) -> str:
    return text(output / "log.txt").partition("stopped after iteration")[2]


def wait_for(condition, job):
    end = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < end, (job.stdout(), job.stderr())
        time.sleep(0.2)
