"""Running what is missing of a grid: any number of processes, on any number of machines."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import portalocker
import torch

import corrdet
from corrdet.errors import CorrdetError
from corrdet.files import exclusive_lock

from .grid import ROOT, Run

RESULTS = "results.jsonl"
# Not those of a machine: what a reader compares.
METRICS = ("AP", "AP50", "AP75", "oLRP", "beta_img", "beta_cls")


class StudyError(CorrdetError, ValueError):
    """Results that cannot be read."""


def read_results(folder: Path) -> list[dict]:
    """The lines of ``results.jsonl``: one for each run that is finished.

    Raises:
        StudyError: a line is no result.
    """
    path = folder / RESULTS
    if not path.is_file():
        return []
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            result = json.loads(line)
            result["run"], result["metrics"]["AP"]
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(
                f"{path}, line {number}, is no result: remove it, and its run is done again"
            ) from error
        results.append(result)
    return results


def run_all(runs: Sequence[Run], folder: Path, processes: int, threads: int) -> dict[str, str]:
    """Train what has no result yet, and is not being trained by somebody else.

    Args:
        runs: of the grid.
        folder: of the study; several machines may share it, as long as its locks hold for all of
            them, which those of NFS do.
        processes: trainings at once.
        threads: of each.

    Returns:
        run -> why it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        failures = pool.map(lambda run: _run_if_missing(run, folder, threads), runs)
        return {run.name: why for run, why in zip(runs, failures, strict=True) if why}


def _run_if_missing(run: Run, folder: Path, threads: int) -> str | None:
    with _claimed(folder / f".{run.name}.lock") as is_ours:
        # Others may have finished it in the meantime.
        if not is_ours or _has_result(run, folder):
            return None
        return _train(run, folder, threads)


def _has_result(run: Run, folder: Path) -> bool:
    return any(result["run"] == run.name for result in read_results(folder))


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether the run is ours until the block ends; a process that dies gives it back."""
    with open(path, "a") as file:
        try:
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException:
            yield False
            return
        try:
            yield True
        finally:
            portalocker.unlock(file)


def _train(run: Run, folder: Path, threads: int) -> str | None:
    output = folder / run.name
    output.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "train_net.py"), "--resume"]
    command += ["--config-file", str(ROOT / run.config)]
    command += ["SEED", str(run.seed), "OUTPUT_DIR", str(output), *run.opts]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
    origin = provenance(threads)  # before: others may commit while it trains
    start = time.monotonic()
    with open(output / "study.log", "a") as log:
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    seconds = time.monotonic() - start
    if status:
        last = (output / "study.log").read_text(errors="replace").strip().splitlines()[-1:]
        return f"exit status {status}: {' '.join(last)} ({output / 'study.log'})"
    metrics = _last_metrics(output / "metrics.json")
    if metrics is None:
        return f"no evaluation in {output / 'metrics.json'}"
    result = {
        "run": run.name,
        "detector": run.detector,
        "loss": run.loss,
        "seed": run.seed,
        "metrics": metrics,
        # Of the last start, if it was interrupted.
        "seconds": round(seconds, 1),
        "config": run.config,
        "opts": list(run.opts),
        **origin,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with exclusive_lock(folder / f".{RESULTS}.lock"), open(folder / RESULTS, "a") as file:
        file.write(json.dumps(result) + "\n")
    # What a training is resumed from is 20 MB, of hundreds of runs.
    for path in output.glob("model_*.pth"):
        path.unlink()
    return None


def _last_metrics(path: Path) -> dict[str, float] | None:
    found = None
    if path.is_file():
        for line in path.read_text().splitlines():
            content = json.loads(line)
            if "bbox/AP" in content:
                found = {name: content.get(f"bbox/{name}") for name in METRICS}
    return found


def provenance(threads: int) -> dict:
    """What a result depends on beside its config: the commit, versions, the machine."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or None,
        # Files that git does not know say nothing of the code.
        "changed": any(not line.startswith("??") for line in changes.stdout.splitlines()),
        "corrdet": corrdet.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
    }
