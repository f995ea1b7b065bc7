"""Signals that ask a training to end; see test_faults.py for real trainings."""

import os
import signal

import pytest

from corrdet.engine import stopping
from corrdet.engine.stopping import StopSignals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_kept_in_mind(name):
    before = signal.getsignal(getattr(signal, name))
    with StopSignals() as signals:
        assert signals.stops_after(3) is None
        os.kill(os.getpid(), getattr(signal, name))
        assert signals.stops_after(4) == name
    assert signal.getsignal(getattr(signal, name)) is before


def test_ctrl_c_twice(monkeypatch):
    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        now = 101.0  # the same, handed on by a launcher
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stops_after(0) == "SIGINT"
        now = 104.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signals.stops_after(0)


class Told:
    """What processes tell each other, without a store."""

    def __init__(self):
        self.word = None

    def propose_stop(self, iteration, reason):
        self.word = self.word or (iteration, reason)

    def stop(self):
        return self.word


def test_processes_stop_after_the_same_iteration(monkeypatch):
    told = Told()
    monkeypatch.setattr(stopping, "channel", lambda: told)
    ahead, behind = StopSignals(), StopSignals()
    behind._received = "SIGTERM"
    # One has begun iteration 6 when the other one, which has just done 5, gets the signal.
    assert behind.stops_after(5) is None and told.word == (7, "SIGTERM")
    assert ahead.stops_after(6) is None and behind.stops_after(6) is None
    assert ahead.stops_after(7) == behind.stops_after(7) == "SIGTERM"
