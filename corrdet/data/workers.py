"""The processes that read images: what ends them, and what is said of it."""

import multiprocessing.queues
import multiprocessing.util
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.data
from torch.multiprocessing import reductions

from corrdet.errors import CorrdetError

# Exit status of a worker that could not hand a batch on; not one that others have.
_NOT_HANDED_ON = 78
_SHARED_MEMORY = (
    "the shared memory in /dev/shm is too small for its batches: docker run --shm-size 8g or "
    "--ipc=host, fewer DATALOADER.NUM_WORKERS, or DATALOADER.NUM_WORKERS 0, which needs none"
)
_KILLED = "the machine was out of memory, perhaps: fewer DATALOADER.NUM_WORKERS take less of it"


class WorkerError(CorrdetError, RuntimeError):
    """A process that reads images has ended."""


def prepare_worker(worker_id: int = 0) -> None:
    """In a worker: outlive signals that are for the training, end where batches get lost."""
    # A signal to all processes of a job asks for an end of the training, which has an iteration to
    # finish first. A worker that stays behind ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
    # A thread of the queue hands batches on; it prints its errors, and the training would wait.
    multiprocessing.queues.Queue._on_queue_feeder_error = _end  # type: ignore[method-assign]


def _end(queue: Any, error: BaseException, batch: Any) -> None:
    print(f"a worker of the loader cannot hand its batch on: {error}", flush=True)
    os._exit(_NOT_HANDED_ON)


def _kill_workers() -> None:
    """At the end of the training process: workers outlive the SIGTERM that Python sends them."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's says that a worker was killed
    for worker in workers:
        worker.kill()


# Before Python terminates and waits for what is left, in any process.
multiprocessing.util.Finalize(None, _kill_workers, exitpriority=10)


class PreparingWorkers:
    """A mapper for a loader that prepares no workers, such as Detectron2's of test sets."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self._mapper = mapper
        self._is_prepared = False

    def __call__(self, record: dict) -> dict:
        if not self._is_prepared and torch.utils.data.get_worker_info() is not None:
            prepare_worker()
            self._is_prepared = True
        return self._mapper(record)


def worker_failure(error: BaseException) -> WorkerError | None:
    """What PyTorch's error says of a worker that has ended, in words; None for any other error.

    PyTorch raises it wherever the training process happens to be.
    """
    if isinstance(error, ConnectionError | EOFError) and _is_of_a_batch(error):
        return WorkerError(f"a worker of the loader has ended: it was killed; {_KILLED}")
    if not isinstance(error, RuntimeError):
        return None
    match = re.match(
        r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (?:is killed by signal: ([^.]+)|exited "
        r"unexpectedly(?: with exit code (\d+))?)",
        str(error),
    )
    if match is None:
        return None
    by, status = match.groups()
    is_short = status == str(_NOT_HANDED_ON) or (by or "").startswith("Bus error")
    if is_short or (by is None and _shared_memory() < 2**30):
        reason = _SHARED_MEMORY
    elif by and not by.startswith("Killed"):
        reason = f"it ended by a signal: {by}"
    else:
        reason = f"it was killed; {_KILLED}"
    return WorkerError(f"a worker of the loader has ended: {reason}")


def _is_of_a_batch(error: BaseException) -> bool:
    """Whether it was raised while a batch was taken over, from a worker that was gone by then."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == reductions.__file__ for frame, _ in frames)


def _shared_memory() -> int:
    """Bytes of /dev/shm."""
    try:
        size = os.statvfs("/dev/shm")
    except OSError:
        return 2**63
    return size.f_blocks * size.f_frsize
