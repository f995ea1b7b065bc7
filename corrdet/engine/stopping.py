"""Signals that ask a training to end: it does so after an iteration, with a checkpoint."""

import logging
import signal
import threading
import time

from .faults import channel

# Exit status of a training that was asked to end and can go on: EX_TEMPFAIL of sysexits.h.
STOPPED = 75
# Ctrl-C comes twice from a launcher that hands it on; a second one ends at once later than that.
_AGAIN_AFTER = 3.0


class TrainingStopped(SystemExit):
    """The training has ended by a signal, and its checkpoint is written."""

    def __init__(self, message: str):
        super().__init__(STOPPED)
        self.message = message


class StopSignals:
    """In the block, SIGTERM, SIGUSR1 and Ctrl-C are kept in mind and end nothing.

    Only in the main thread, which is the one that signals come to.
    """

    def __init__(self):
        self._received: str | None = None
        self._at = 0.0
        self._proposed = False
        self._before: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received, self._at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._at > _AGAIN_AFTER:
            raise KeyboardInterrupt

    def stops_after(self, iteration: int) -> str | None:
        """Whether this iteration, which is done, is the last one; the same on all processes.

        A signal to any process is one to all. They stop after an iteration that none has begun: as
        gradients are averaged in each, none is more than one ahead.

        Returns:
            the name of the signal; None for going on.
        """
        shared = channel()
        if shared is None:
            return self._received
        if self._received is not None and not self._proposed:
            self._proposed = True
            shared.propose_stop(iteration + 2, self._received)
            logging.getLogger(__name__).info(
                "%s: the training stops after iteration %d", self._received, iteration + 2
            )
        last, name = shared.stop() or (None, None)
        return name if last is not None and iteration >= last else None
