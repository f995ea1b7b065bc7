"""Training hooks."""

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter

from corrdet.modeling.core import WRITER_PERIOD


class WriteEvaluations(HookBase):
    """Writes an evaluation's results when they are there, not at the next period of the writers.

    A training that is killed in between would lose them, and would not evaluate again when resumed.
    """

    def __init__(self, writers: list[EventWriter], period: int):
        """
        Args:
            writers: what the trainer writes metrics with.
            period: of the evaluation, in iterations; 0 for none.
        """
        self._writers = writers
        self._period = period

    def after_step(self):
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            for writer in self._writers:
                writer.write()


class RecentScalars(HookBase):
    """Carries the latest values of what is logged over to a resumed training.

    Logged losses are medians of the last iterations; without their memory, the first lines after
    resuming would be medians of fewer.
    """

    _of_this_process = ("time", "data_time", "rank_data_time")

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
            if storage.smoothing_hints()[name] and name not in self._of_this_process
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
