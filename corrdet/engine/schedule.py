"""Names of LR schedulers, checked before there is a model."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

from corrdet.errors import ConfigError
from corrdet.names import unknown_name

# Which of them there are depends on the version of Detectron2.
_LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def check_lr_scheduler(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: ``SOLVER.LR_SCHEDULER_NAME`` is none of Detectron2's.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if _is_built(cfg, name):
        return
    known = [other for other in _LR_SCHEDULERS if _is_built(cfg, other)]
    raise ConfigError("SOLVER.LR_SCHEDULER_NAME: " + unknown_name("name", name, known))


def _is_built(cfg: CfgNode, name: str) -> bool:
    """Whether Detectron2 makes this scheduler, of whose names it has no list."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    # Without its warning about steps behind the end, which the training's own scheduler gives.
    solver_logger = logging.getLogger("detectron2.solver.build")
    level = solver_logger.level
    solver_logger.setLevel(logging.ERROR)
    try:
        build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))
    except ValueError as error:
        if "Unknown LR scheduler" in str(error):
            return False
        raise
    finally:
        solver_logger.setLevel(level)
    return True
