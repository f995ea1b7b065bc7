"""The losses on the test set, and what follows from an evaluation: the best checkpoint, the end."""

import copy
import json
import logging
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from corrdet.config_keys import declare
from corrdet.data import CorrdetDatasetMapper
from corrdet.data.workers import prepare_worker
from corrdet.errors import ConfigError
from corrdet.files import atomic_write
from corrdet.names import unknown_name
from corrdet.options import BOOL, Key, Range, at_least, one_of

from .checkpoint import SafeCheckpointer
from .metric_names import (
    check_evaluation_name,
    check_expected_results,
    check_logged_name,
    has_own_evaluators,
)
from .random_state import get_random_states, set_random_states

_TEXT = Range("a text", lambda v: isinstance(v, str))
_METRIC = (
    'such as "bbox/AP" or "val_total_loss", as metrics.json has it; with several test sets, behind '
    'the name of one: "my_val/bbox/AP"'
)
_MODE = Key(
    "auto",
    one_of(("auto", "max", "min")),
    "which values are better; auto: lower ones of losses, LRP and AIC, higher ones of all else",
)
declare(
    "TEST",
    EVAL_LOSS=Key(
        False,
        BOOL,
        "at each evaluation log the losses on the test sets, too, as val_loss_cls, ..., "
        "val_total_loss",
    ),
)
declare(
    "TEST.BEST_CHECKPOINT",
    METRIC=Key(
        "",
        _TEXT,
        "keep the checkpoint of the best evaluation by this metric as model_best.pth, "
        f"{_METRIC}; '' for none",
    ),
    MODE=_MODE,
)
declare(
    "SOLVER.EARLY_STOPPING",
    METRIC=Key("", _TEXT, f"end the training by this metric, {_METRIC}; '' for not"),
    PATIENCE=Key(5, at_least(1), "evaluations in a row that are no better than the best before"),
    MODE=_MODE,
)
_WATCHING = ("TEST.BEST_CHECKPOINT", "SOLVER.EARLY_STOPPING")


def check_metrics(cfg: CfgNode, trainer: type) -> None:
    """
    Args:
        cfg: the config.
        trainer: what trains; evaluators of its own measure what they like.

    Raises:
        ConfigError: a metric is watched that no evaluation will measure.
    """
    if not has_own_evaluators(trainer):
        check_expected_results(cfg)
    for section, node in zip(
        _WATCHING, (cfg.TEST.BEST_CHECKPOINT, cfg.SOLVER.EARLY_STOPPING), strict=True
    ):
        if not node.METRIC:
            continue
        if cfg.TEST.EVAL_PERIOD <= 0:
            raise ConfigError(
                f"{section}.METRIC is {node.METRIC!r}, but TEST.EVAL_PERIOD is "
                f"{cfg.TEST.EVAL_PERIOD}: expected the iterations from one evaluation to the next"
            )
        is_loss = re.search(r"(^|/)val_(total_loss|loss_cls|loss_box_reg)$", node.METRIC)
        if is_loss and not cfg.TEST.EVAL_LOSS:
            raise ConfigError(
                f"{section}.METRIC is {node.METRIC!r}, which needs TEST.EVAL_LOSS True"
            )
        if not has_own_evaluators(trainer):
            check_evaluation_name(cfg, f"{section}.METRIC", node.METRIC)


# ---- The losses on the test set.


def build_loss_loader(cfg: CfgNode, dicts: Sequence[dict]) -> DataLoader:
    """Batches of a test set, as large as in training, resized as for testing, with ground truth.

    All processes get the same number of batches, as losses may wait for the other processes; for
    that a few images can come twice.

    Args:
        cfg: the config.
        dicts: the images, in Detectron2's format.

    Raises:
        ConfigError: there is no ground truth.
    """
    if not all("annotations" in record for record in dicts):
        raise ConfigError("TEST.EVAL_LOSS needs test sets with ground truth")
    rank, world_size = comm.get_rank(), comm.get_world_size()
    count = math.ceil(len(dicts) / world_size)
    own = [(rank + index * world_size) % len(dicts) for index in range(count)]
    return DataLoader(
        _Mapped(dicts, own, CorrdetDatasetMapper(cfg, is_train=False, keep_instances=True)),
        batch_size=max(cfg.SOLVER.IMS_PER_BATCH // world_size, 1),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        worker_init_fn=prepare_worker,
    )


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, dicts: Sequence[dict], own: list[int], mapper: CorrdetDatasetMapper):
        self._dicts = dicts
        self._own = own
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, index: int) -> dict:
        return self._mapper(copy.deepcopy(self._dicts[self._own[index]]))


def mean_losses(model: nn.Module, loader: Iterable, iteration: int) -> dict[str, float]:
    """The losses of a model on average over the images of all processes.

    Norms and dropout are as in testing. Every batch is looked at as if it were the next one of the
    training, which then goes on as if nothing had been: what losses, normalizers and buffers keep
    is put back, nothing is logged, and random numbers, of samplers of boxes for example, are those
    of a generator of their own, the same at each call.

    Args:
        model: of this process; it gives losses in training mode.
        loader: batches of images with ground truth, lists of dicts.
        iteration: of the training, which weights of losses depend on.

    Returns:
        loss -> value, and ``total_loss``, their sum.
    """
    sums: dict[str, float] = {}
    count = 0
    states = get_random_states()
    try:
        seed_all_rng(0)
        with torch.no_grad(), EventStorage(iteration), _in_training_mode(model) as put_back:
            for batch in loader:
                losses = model(batch)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
                count += len(batch)
                put_back()
    finally:
        set_random_states(states)
    gathered = comm.all_gather((sums, count))
    total = sum(part[1] for part in gathered)
    means = {name: sum(part[0][name] for part in gathered) / total for name in sums}
    return {**means, "total_loss": sum(means.values())}


@contextmanager
def _in_training_mode(model: nn.Module) -> Iterator:
    """The model with training's outputs and testing's layers; gives what puts its state back."""
    modules = [*model.modules()]
    # Numbers that modules count in, such as the normalizer of Detectron2's RetinaNet; `training`,
    # too.
    numbers = [
        {name: v for name, v in vars(m).items() if v is None or isinstance(v, bool | int | float)}
        for m in modules
    ]
    state = model.state_dict()
    for name, _ in model.named_parameters(remove_duplicate=False):
        state.pop(name, None)
    state_metadata = getattr(state, "_metadata", None)
    state = OrderedDict((name, copy.deepcopy(value)) for name, value in state.items())
    state._metadata = state_metadata

    def put_back() -> None:
        model.load_state_dict(state, strict=False)
        for module, values in zip(modules, numbers, strict=True):
            vars(module).update({k: v for k, v in values.items() if k != "training"})

    model.train()
    for module in modules:
        if isinstance(module, _LIKE_IN_TESTING):
            module.eval()
    try:
        yield put_back
    finally:
        put_back()
        for module, values in zip(modules, numbers, strict=True):
            module.training = values["training"]


# Batch norms have the base class in common, of SyncBatchNorm as well.
_LIKE_IN_TESTING = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
)


# ---- What follows from an evaluation.


class WatchMetric(HookBase):
    """Looks at a metric when an evaluation has measured it; the trainer lets it come last."""

    def __init__(self, metric: str, mode: str, period: int):
        """
        Args:
            metric: its name in the storage of events.
            mode: "max", "min" or "auto", see the keys.
            period: of the evaluation, in iterations.
        """
        if mode == "auto":
            mode = "min" if re.search(r"loss|LRP|AIC", metric) else "max"
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._period = period
        self._name_is_checked = False

    def is_better(self, value: float, than: float | None) -> bool:
        """NaN is better than nothing, not even than None."""
        if not math.isfinite(value):
            return False
        return than is None or self._sign * value > self._sign * than

    def after_step(self):
        if not self._name_is_checked:
            self._name_is_checked = True
            hooks = [*self.trainer._hooks, self.trainer._trainer]
            # The hooks and steps of others may log the metric whenever they like.
            if all(type(h).__module__.startswith(("corrdet.", "detectron2.")) for h in hooks) and (
                not has_own_evaluators(self.trainer.__class__) and comm.is_main_process()
            ):
                latest = self.trainer.storage.latest()
                check_logged_name(self.trainer.cfg, self._metric, latest)
        done = self.trainer.iter + 1
        if done % self._period == 0 and done != self.trainer.max_iter:
            self._look()

    def after_train(self):
        # The last evaluation is that of EvalHook, which comes before.
        if self.trainer.iter >= self.trainer.max_iter:
            self._look()

    def _look(self) -> None:
        if comm.is_main_process():
            latest = self.trainer.storage.latest()
            value, iteration = latest.get(self._metric, (None, -1))
            # What hooks log after the last step is logged one iteration before the evaluation.
            last = self.trainer.iter >= self.trainer.max_iter
            if iteration >= self.trainer.iter - last:
                if not math.isfinite(value):
                    logging.getLogger(__name__).warning(
                        "%s: %s is %s, which is worse than any number; AP is that when the model "
                        "detects nothing",
                        type(self).__name__, self._metric, value,
                    )  # fmt: skip
                self.measured(float(value))
            else:
                logging.getLogger(__name__).warning(
                    "%s: it was not measured by this evaluation: %s",
                    type(self).__name__,
                    unknown_name("metric", self._metric, latest),
                )
        self.looked()

    def measured(self, value: float) -> None:
        """What is done with the value, on the main process."""

    def looked(self) -> None:
        """What is done after that, on all processes."""


class BestCheckpoint(WatchMetric):
    """Keeps the checkpoint of the best evaluation, ``model_best.pth``.

    ``model_best.json`` says which that is; a resumed training reads there what to beat.
    """

    def __init__(self, metric: str, mode: str, period: int, checkpointer: SafeCheckpointer):
        super().__init__(metric, mode, period)
        self._checkpointer = checkpointer
        self._path = os.path.join(checkpointer.save_dir, "model_best.json")
        self._best: float | None = None

    def before_train(self):
        if self.trainer.start_iter > 0 and os.path.isfile(self._path):
            with open(self._path) as file:
                content = json.load(file)
            if content["metric"] == self._metric:
                self._best = content["value"]

    def measured(self, value: float) -> None:
        if not self.is_better(value, self._best):
            return
        self._best = value
        # The last step that is done; after training, iter is one further.
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._checkpointer.save("model_best", tag=False, iteration=iteration)
        with atomic_write(self._path, "w") as file:
            json.dump({"metric": self._metric, "value": value, "iteration": iteration}, file)


class EarlyStopping(WatchMetric):
    """Ends the training when evaluations get no better any more."""

    def __init__(self, metric: str, mode: str, period: int, patience: int, metrics_file: str):
        """
        Args:
            patience: so many evaluations in a row are no better than the best before.
            metrics_file: where the evaluations were written that came after the checkpoint.
        """
        super().__init__(metric, mode, period)
        self._patience = patience
        self._metrics_file = metrics_file
        self._values: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self._metric, "values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["metric"] == self._metric:
            self._values = [(iteration, value) for iteration, value in state["values"]]

    def before_train(self):
        start = self.trainer.start_iter
        if start > 0 and comm.is_main_process():
            # A checkpoint is saved before the evaluation of the same iteration.
            known = {iteration for iteration, _ in self._values}
            for iteration, value in _written_values(self._metrics_file, self._metric):
                if iteration == start - 1 and iteration not in known:
                    self._values.append((iteration, value))
        self.looked()

    def measured(self, value: float) -> None:
        self._values.append((self.trainer.iter, value))

    def looked(self) -> None:
        if not comm.all_gather(self._is_over())[0]:
            return
        if self.trainer.iter < self.trainer.max_iter:
            self.trainer.stop_early(
                f"SOLVER.EARLY_STOPPING: {self._metric} was no better in the last "
                f"{self._patience} evaluations"
            )

    def _is_over(self) -> bool:
        best, since = None, 0
        for _, value in self._values:
            if self.is_better(value, best):
                best, since = value, 0
            elif best is not None:  # before there is one, a model may not detect anything yet
                since += 1
        return since >= self._patience


def _written_values(path: str, metric: str) -> Iterator[tuple[int, float]]:
    if os.path.isfile(path):
        with open(path) as file:
            for line in file:
                try:
                    content = json.loads(line)
                except ValueError:  # the line that a killed process was writing
                    return
                if metric in content:
                    yield content["iteration"], content[metric]
