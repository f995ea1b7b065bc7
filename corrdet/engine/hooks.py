"""Training hooks."""

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter
from torch import Tensor

from corrdet.losses.correlation import (
    average_ranks,
    concordance_correlation,
    pearson_correlation,
)

# How often Detectron2's trainer writes, and over how many iterations it smooths.
WRITER_PERIOD = 20


class _BatchMeasure(HookBase):
    """Logs values of the positives of the batch, whenever metrics are written.

    Of models that keep ``latest_positives``: tensors (P,) by name, ``scores`` and ``ious`` among
    them.
    """

    def __init__(self, model, period: int = WRITER_PERIOD):
        """
        Args:
            model: the detector, without a DistributedDataParallel around it.
            period: in iterations.
        """
        self._model = model
        self._period = period

    def after_step(self):
        if (self.trainer.iter + 1) % self._period:
            return
        positives = getattr(self._model, "latest_positives", None)
        values = self.measure(dict(positives)) if positives else {}
        if not values:
            return
        # One copy from the device for all of them.
        numbers = torch.stack(list(values.values())).tolist()
        for name, number in zip(values, numbers, strict=True):
            self.trainer.storage.put_scalar(name, number, smoothing_hint=False)

    def measure(self, positives: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name; none where they are not defined."""
        raise NotImplementedError


class BatchCorrelation(_BatchMeasure):
    """Logs how scores and IoUs of the batch's positives correlate.

    Writes ``correlation/pearson``, ``correlation/spearman`` and ``correlation/concordance``, each
    in [-1, 1].
    """

    def measure(self, positives: dict[str, Tensor]) -> dict[str, Tensor]:
        scores, ious = positives["scores"], positives["ious"]
        if len(scores) < 2:
            return {}
        return {
            "correlation/pearson": pearson_correlation(scores, ious),
            "correlation/spearman": pearson_correlation(average_ranks(scores), average_ranks(ious)),
            "correlation/concordance": concordance_correlation(scores, ious),
        }


class BatchAgreement(_BatchMeasure):
    """Logs how far scores and IoUs of positives are apart.

    Writes ``AIC/sum`` and ``AIC/mean``, of abs(score - IoU) (HarmonicDet, Eq. 14). Whatever else is
    kept of the positives, such as the factors of a harmonic coupling, is written as a distribution:
    ``positives/<name>-mean``, ``-p10``, ``-p50`` and ``-p90``.
    """

    def measure(self, positives: dict[str, Tensor]) -> dict[str, Tensor]:
        gaps = (positives.pop("scores").float() - positives.pop("ious").float()).abs()
        if not len(gaps):
            return {}
        values = {"AIC/sum": gaps.sum(), "AIC/mean": gaps.mean()}
        for name, factors in positives.items():
            factors = factors.float()
            # Not torch.quantile, which refuses more than 16 million values.
            ordered = factors.sort().values
            values[f"positives/{name}-mean"] = factors.mean()
            for percent in (10, 50, 90):
                place = round(percent / 100 * (len(ordered) - 1))
                values[f"positives/{name}-p{percent}"] = ordered[place]
        return values


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
