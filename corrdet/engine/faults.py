"""What processes that train together tell each other when one of them fails or is told to stop.

A process that fails leaves the others waiting for it in a collective operation, for half an hour
or until the operating system closes the connection; what they say then hides the reason. So the one
that fails leaves its message in the store that the processes have found each other by, and a thread
of each process looks there.
"""

import os
import re
import sys
import threading
import time
from dataclasses import dataclass

import torch.distributed as dist
from detectron2.utils import comm

from corrdet.errors import CorrdetError

# Exit status of a process that has printed what the user can mend; not one that others have.
EXPLAINED = 79
# How long the others may take to end by themselves once one has failed, in seconds.
GRACE = 10
# Errors of collective operations when another process is gone.
_OF_CONNECTIONS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|peer", re.IGNORECASE)


class FailedElsewhere(CorrdetError, RuntimeError):
    """Another process has failed; the message is what that one says."""


@dataclass(frozen=True)
class Failure:
    """Of a process: its rank, and a message."""

    rank: int | None
    message: str

    def told_by_another(self) -> str:
        if self.rank is None:
            return f"stopped, as {self.message}"
        return f"stopped, as rank {self.rank} failed: {self.message}"


_LOST = Failure(
    None, "the connection to another process is lost: it was killed, or its machine is gone"
)


class Channel:
    """A few words in the store of the process group, which all processes can read."""

    def __init__(self):
        self._store = dist.PrefixStore("corrdet", dist.distributed_c10d._get_default_store())
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def set_failure(self, message: str) -> None:
        """Tell the others; only the first of several failures is kept."""
        if self._store.add("failures", 1) == 1:
            self._store.set("failure", f"{self.rank} {message}")

    def failure(self, wait: float = 0) -> Failure | None:
        """That of another process, if there is one.

        Args:
            wait: seconds to wait for it.
        """
        end = time.monotonic() + wait
        while not self._store.check(["failure"]):
            if time.monotonic() >= end:
                return None
            time.sleep(0.1)
        rank, message = self._store.get("failure").decode().split(" ", 1)
        return None if int(rank) == self.rank else Failure(int(rank), message)

    def propose_stop(self, iteration: int, reason: str) -> None:
        """Have all processes stop after an iteration that none of them has begun."""
        if self._store.add("stops", 1) == 1:
            self._store.set("stop", f"{iteration} {reason}")

    def stop(self) -> tuple[int, str] | None:
        """The iteration after which all stop, and why; None for going on."""
        if not self._store.check(["stop"]):
            return None
        iteration, reason = self._store.get("stop").decode().split(" ", 1)
        return int(iteration), reason

    def say_goodbye(self, wait: float) -> None:
        """Before a process ends: the first one, which may keep the store, stays for the others.

        Args:
            wait: for how many seconds at most.
        """
        done = self._store.add("goodbyes", 1)
        end = time.monotonic() + wait
        while self.rank == 0 and done < self.world_size and time.monotonic() < end:
            time.sleep(0.1)
            done = self._store.add("goodbyes", 0)


_channel: Channel | None = None


def channel() -> Channel | None:
    """That of this process; None where it trains alone."""
    global _channel
    if comm.get_world_size() == 1:
        return None
    if _channel is None:
        _channel = Channel()
    return _channel


class Watch(threading.Thread):
    """Ends a process that waits for one that has failed, or whose parent is gone."""

    def __init__(self, channel: Channel):
        super().__init__(name="corrdet-watch", daemon=True)
        self._channel = channel
        self._over = threading.Event()
        self._parent = os.getppid()

    def end(self) -> None:
        """Look no longer: the process ends."""
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(1):
            if os.getppid() != self._parent:
                self._exit("the process that started this one is gone")
            try:
                failure = self._channel.failure()
            except RuntimeError:
                message = _LOST.told_by_another()
            else:
                if failure is None:
                    continue
                message = failure.told_by_another()
            # The process may be on its way out.
            if not self._over.wait(GRACE):
                self._exit(message)

    def _exit(self, message: str) -> None:
        say(message, self._channel.rank)
        try:
            self._channel.say_goodbye(0)
        except RuntimeError:
            pass
        # Not sys.exit, which ends a thread; the main one waits in an operation of the group.
        os._exit(EXPLAINED)


def say(message: str, rank: int) -> None:
    """Print an error of a process."""
    print(f"error: rank {rank}: {message}", file=sys.stderr, flush=True)


def failure_elsewhere(error: BaseException | None) -> Failure | None:
    """What made an operation of the process group fail here: the failure of another process.

    Args:
        error: of this process.

    Returns:
        None if the error has another reason.
    """
    if not isinstance(error, RuntimeError) or _channel is None:
        return None
    if not _OF_CONNECTIONS.search(str(error)):
        return None
    try:
        return _channel.failure(wait=GRACE / 2) or _LOST
    except RuntimeError:  # the store is gone as well
        return _LOST
