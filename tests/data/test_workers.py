"""Processes that read images, and what ends them: the real faults."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from torch.multiprocessing import reductions

from corrdet.data import workers
from corrdet.data.loader import ResumableLoader
from corrdet.data.workers import PreparingWorkers, WorkerError, worker_failure
from tests.helpers.training import ROOT


def mapper(record):
    return {"image": torch.zeros(3, 400, 400), "pid": os.getpid()}


def loader(seed=0):
    return ResumableLoader(
        [{}] * 8, mapper, TrainingSampler(8, seed=seed), batch_size=1, seed=seed, num_workers=1
    )


def end_by(number) -> str:
    """The error of a training whose worker gets a signal."""
    # The latter two where a batch was half taken over from it.
    with pytest.raises((RuntimeError, ConnectionError, EOFError)) as raised, loader() as batches:
        (image,) = next(batches)
        os.kill(image["pid"], number)
        for _ in range(100):
            next(batches)
            time.sleep(0.02)
    time.sleep(0.1)  # PyTorch, which is told of workers that end, says nothing of it any more
    return str(worker_failure(raised.value))


def test_a_worker_that_is_killed():
    assert "ended: it was killed; the machine was out of memory" in end_by(signal.SIGKILL)


def test_a_closed_loader_has_no_workers_where_its_iterator_is_still_held():
    """As by the traceback of an error."""
    with loader() as batches:
        (image,) = next(batches)
        held = batches._iterator
    assert held is not None
    with pytest.raises(ProcessLookupError):
        os.kill(image["pid"], 0)


def test_a_worker_that_is_killed_before_its_batch_is_taken_over():
    """What it has handed on is fetched from it, by a connection of which nobody is at the end."""

    class HandedOn:
        def detach(self):
            raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(ConnectionResetError) as raised:
        reductions.rebuild_storage_fd(torch.UntypedStorage, HandedOn(), 1)
    assert "it was killed" in str(worker_failure(raised.value))
    assert worker_failure(ConnectionResetError("of anything else")) is None


def test_workers_outlive_signals_for_the_training():
    with loader() as batches:
        (image,) = next(batches)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(image["pid"], number)
        time.sleep(0.1)
        assert all(next(batches)[0]["pid"] == image["pid"] for _ in range(5))


@pytest.mark.parametrize(
    "message, size, expected",
    [
        ("DataLoader worker (pid(s) 3, 4) exited unexpectedly", 2**26, "docker run --shm-size"),
        ("DataLoader worker (pid(s) 3, 4) exited unexpectedly", 2**40, "it was killed"),
        ("DataLoader worker (pid 3) is killed by signal: Bus error. It is", 2**40, "--shm-size"),
        (
            "DataLoader worker (pid 3) exited unexpectedly with exit code 78. Details are lost",
            2**40,
            "--shm-size",
        ),
        ("DataLoader worker (pid 3) is killed by signal: Aborted. ", 2**26, "a signal: Aborted"),
    ],
)
def test_words(message, size, expected, monkeypatch):
    monkeypatch.setattr(workers, "_shared_memory", lambda: size)
    error = worker_failure(RuntimeError(message))
    assert isinstance(error, WorkerError) and expected in str(error)


def test_other_errors_are_left_alone():
    assert worker_failure(RuntimeError("CUDA out of memory")) is None
    assert worker_failure(ValueError("DataLoader worker (pid 3) exited unexpectedly")) is None


SMALL = """
import sys, torch
from corrdet.data.workers import PreparingWorkers, worker_failure
from tests.data.test_workers import loader, mapper
if sys.argv[1] == "train":
    batches = loader()
else:
    class Mapped(torch.utils.data.Dataset):
        map = PreparingWorkers(mapper)
        def __len__(self): return 9
        def __getitem__(self, index): return self.map({})
    batches = iter(torch.utils.data.DataLoader(Mapped(), num_workers=1, collate_fn=list))
try:
    for _ in range(9):
        next(batches)
except RuntimeError as error:
    print(worker_failure(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_small_dev_shm(kind):
    command = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    isolated = ["unshare", "--mount", "--map-root-user", "bash", "-c", command, "bash"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs to mount a file system")
    finished = subprocess.run(
        [*isolated, sys.executable, "-c", SMALL, kind],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert "the shared memory in /dev/shm is too small" in finished.stdout, finished.stderr


def test_a_mapper_is_left_alone_in_the_training_process():
    before = signal.getsignal(signal.SIGTERM)
    assert PreparingWorkers(len)({}) == 0
    assert signal.getsignal(signal.SIGTERM) is before
