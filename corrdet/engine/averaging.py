"""The exponential moving average of weights, which evaluations look at."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.files import atomic_write
from corrdet.options import BOOL, Key, Range, is_number

declare(
    "MODEL_EMA",
    ENABLED=Key(
        False,
        BOOL,
        "keep a moving average of the weights: evaluations are of it, and it is in "
        "model_final_ema.pth",
    ),
    DECAY=Key(
        0.999,
        Range("in [0, 1)", lambda v: is_number(v) and 0 <= v < 1),
        "of the average in each iteration; in the first ones less, (1 + n) / (10 + n)",
    ),
)


class AverageWeights(HookBase):
    """Averages a model's parameters over the iterations; buffers are the latest.

    All processes have the same average. It is in checkpoints beside the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: of this process, without its DistributedDataParallel.
            decay: weight of the average so far.
        """
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._steps = 0

    def before_train(self):
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                kept = self._average.get(name, parameter)
                self._average[name] = kept.detach().to(parameter.device, copy=True)

    def after_step(self):
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        with torch.no_grad():
            torch._foreach_lerp_([*self._average.values()], [*self._parameters.values()], 1 - decay)

    def after_train(self):
        is_done = self.trainer.iter >= self.trainer.max_iter or self.trainer.is_stopped_early
        if is_done and comm.is_main_process():
            with self.in_place():
                model = self.trainer._detector.state_dict()
                path = os.path.join(self.trainer.checkpointer.save_dir, "model_final_ema.pth")
                with atomic_write(path, "wb") as file:
                    torch.save({"model": model}, file)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the block, the model has the average in place of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                kept = parameter.clone()
                parameter.copy_(self._average[name])
                self._average[name].copy_(kept)

    def evaluating(self, evaluate: Callable[[], Any]) -> Callable[[], Any]:
        """A function that evaluates the average where another one evaluates the weights."""

        def evaluate_average():
            with self.in_place():
                return evaluate()

        return evaluate_average

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average, self._steps = dict(state["average"]), state["steps"]


def take_average(model: nn.Module, checkpoint: Mapping[str, Any], cfg: CfgNode) -> None:
    """With ``MODEL_EMA.ENABLED``, give a model for evaluation the average in a checkpoint.

    Args:
        model: with the weights of the checkpoint.
        checkpoint: what the checkpointer has returned.

    Raises:
        ConfigError: there is none.
    """
    if not cfg.MODEL_EMA.ENABLED:
        return
    hooks = checkpoint.get("trainer", {}).get("hooks", {})
    if AverageWeights.__name__ not in hooks:
        raise ConfigError(
            "MODEL_EMA.ENABLED is True, but the weights come without an average: expected a "
            "checkpoint of such a training, or False for weights that are an average, such as "
            "model_final_ema.pth"
        )
    average = hooks[AverageWeights.__name__]["average"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(average[name])
    logging.getLogger(__name__).info(
        "the model has the moving average of its weights in their place, as MODEL_EMA.ENABLED says"
    )
