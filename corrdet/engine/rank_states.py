"""What each process has for itself in a training of several, for a checkpoint that resumes exactly.

Parameters and optimizer are the same on all processes. Random states are not, nor is what modules
keep: running statistics of batch norms, the running mean of RetinaNet's positives, what losses
remember.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .random_state import get_random_states


def collect_rank_states(model: nn.Module) -> list[dict[str, Any]] | None:
    """The states of all processes, which all have to call it.

    Args:
        model: of this process, without its DistributedDataParallel.

    Returns:
        on the first process, of each ``random_states``; ``model``, entries of the state dict that
        are no parameters and not as on the first process; ``without``, those that only the first
        one has. None on the others.
    """
    gathered = comm.gather({"random_states": get_random_states(), "model": own_entries(model)})
    if not gathered:
        return None
    first = gathered[0]["model"]
    return [
        {
            "random_states": state["random_states"],
            "model": {
                name: value
                for name, value in state["model"].items()
                if name not in first or not _equal(value, first[name])
            },
            "without": [name for name in first if name not in state["model"]],
        }
        for state in gathered
    ]


def own_entries(model: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict that are no parameters, on the CPU."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in model.state_dict().items()
        if name not in parameters and isinstance(value, Tensor)
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    # NaN is like NaN.
    return one.dtype == other.dtype and (
        one.equal(other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
        if one.shape == other.shape
        else False
    )


def check_batch(checkpoint: Mapping[str, Any], path: str, cfg: CfgNode) -> None:
    """
    Args:
        checkpoint: what is in the file.
        path: of the file.
        cfg: of this run, scaled to its number of processes.

    Raises:
        CheckpointError: ``SOLVER.REFERENCE_WORLD_SIZE`` has made other batches and iterations of
            another number of processes, which a training cannot change to on the way.
    """
    if cfg.SOLVER.REFERENCE_WORLD_SIZE <= 0:
        return
    then = yaml.safe_load(checkpoint["trainer"]["config"])["SOLVER"]["IMS_PER_BATCH"]
    if then != cfg.SOLVER.IMS_PER_BATCH:
        raise CheckpointError(
            f"{path} is of a training with {then} images in an iteration; "
            f"SOLVER.REFERENCE_WORLD_SIZE makes it {cfg.SOLVER.IMS_PER_BATCH} for "
            f"{comm.get_world_size()} process(es): expected as many processes as then, or "
            "SOLVER.REFERENCE_WORLD_SIZE 0 with the IMS_PER_BATCH, learning rate and iterations "
            "of then"
        )


def restore_rank_state(model: nn.Module, states: list | None) -> dict[str, Any] | None:
    """Give a model that has the first process's state that of this process.

    Args:
        model: without its DistributedDataParallel.
        states: of :func:`collect_rank_states`; None of a checkpoint that has only the first one's.

    Returns:
        the random states of this process; None for those of the first one.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    logger = logging.getLogger(__name__)
    if states is None:
        if world_size > 1:
            logger.warning(
                "the checkpoint has the state of the first process only: random numbers, running "
                "statistics and what losses keep are not those that the other processes had"
            )
        return None
    if len(states) != world_size:
        logger.warning(
            "the checkpoint is of %d process(es), and %d go on: with as many images in an "
            "iteration as before, but not with the same random numbers, running statistics and "
            "states of losses",
            len(states),
            world_size,
        )
    if rank >= len(states):
        return None
    state = states[rank]
    if state["model"] or state["without"]:
        entries = model.state_dict()
        for name in state["without"]:
            entries.pop(name, None)
        entries.update(state["model"])
        with torch.no_grad():
            model.load_state_dict(entries, strict=False)
    return state["random_states"]
