"""Training hooks."""

import sys

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import LRScheduler, PeriodicWriter

from corrdet.modeling.core import WRITER_PERIOD

from .stopping import TrainingStopped


class WriterOfEvaluations(PeriodicWriter):
    """Writes an evaluation's results when they are there, not at the next period of the writers.

    A training that is killed in between would lose them, and would not evaluate again when resumed.
    """

    def __init__(self, hook: PeriodicWriter, eval_period: int):
        """
        Args:
            hook: what it takes the place of, with the writers and their period.
            eval_period: of the evaluation, in iterations; 0 for none.
        """
        super().__init__(hook._writers, hook._period)
        self._eval_period = eval_period

    def after_step(self):
        if self._eval_period > 0 and (self.trainer.iter + 1) % self._eval_period == 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()

    def after_train(self):
        if isinstance(sys.exc_info()[1], TrainingStopped):
            # What is written now, a training that is not stopped would not write.
            for writer in self._writers:
                writer.close()
        else:
            super().after_train()


class RankStates(HookBase):
    """Before a checkpoint, collects what each process has for itself; on all processes."""

    def __init__(self, period: int):
        """
        Args:
            period: of the checkpoints, in iterations.
        """
        self._period = period

    def after_step(self):
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.trainer.collect_rank_states()


def is_restored_by_detectron2(scheduler) -> bool:
    """Whether Detectron2's own hook saves the state of a scheduler of learning rates."""
    return isinstance(scheduler, torch.optim.lr_scheduler._LRScheduler)


class AnyLRScheduler(LRScheduler):
    """Detectron2's hook, for every scheduler that has a state.

    Detectron2 0.6 saves that of ``_LRScheduler``, the base of its own schedulers, which PyTorch's
    have no longer since 2.0: a resumed training would go through the warm-up again.
    """

    def state_dict(self) -> dict:
        return self.scheduler.state_dict() if hasattr(self.scheduler, "state_dict") else {}

    def load_state_dict(self, state: dict) -> None:
        if hasattr(self.scheduler, "load_state_dict"):
            self.scheduler.load_state_dict(state)


class RecentScalars(HookBase):
    """Hands the latest values of what is logged on to a resumed training.

    Logged losses are medians of the last iterations. Without these values the first lines after
    resuming would be medians of fewer.
    """

    _times = ("time", "data_time", "rank_data_time")  # of this run, not of the one before

    def __init__(self, window: int = WRITER_PERIOD):
        self._window = window
        self._restored: dict[str, list[tuple[float, int]]] = {}

    def state_dict(self) -> dict[str, list[tuple[float, int]]]:
        storage = self.trainer.storage
        return {
            name: [(float(value), int(iteration)) for value, iteration in history.values()][
                -self._window :
            ]
            for name, history in storage.histories().items()
            if storage.smoothing_hints()[name] and name not in self._times
        }

    def load_state_dict(self, state: dict[str, list[tuple[float, int]]]) -> None:
        self._restored = state

    def before_train(self):
        storage = self.trainer.storage
        now = storage.iter
        for name, values in self._restored.items():
            for value, iteration in values:
                storage.iter = iteration
                storage.put_scalar(name, value)
        storage.iter = now
        self._restored = {}
