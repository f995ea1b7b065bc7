"""State that checkpoints of version 0.1 have beside the model's."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .training import RunningPositives


def load_old_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Go on with what the losses have kept, where a trainer's state holds it.

    Since then it is in the state dict of the model, under the names of its modules.

    Args:
        model: the detector.
        state: of the trainer: ``loss_normalizer``, RetinaNet's running mean of positives, or None;
            and ``criteria``, the states of losses by the names of the modules with a criterion.
    """
    mean = state.get("loss_normalizer")
    if mean is not None:
        for module in model.modules():
            if isinstance(module, RunningPositives):
                module.restore(mean)
    for owner, losses in state.get("criteria", {}).items():
        if losses:
            model.get_submodule(owner).criterion.restore(losses)
