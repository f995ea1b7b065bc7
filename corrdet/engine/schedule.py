"""Detectron2's keys of the schedule: what they may be, checked before there is a model."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

from corrdet.errors import ConfigError
from corrdet.names import config_value, unknown_name
from corrdet.options import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    Key,
    Range,
    at_least,
    is_whole,
    one_of,
)

# Which of them there are depends on the version of Detectron2.
_LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")

# The keys are Detectron2's, and so are their defaults.
_RANGES = {
    "SOLVER.MAX_ITER": at_least(1),
    "SOLVER.IMS_PER_BATCH": at_least(1),
    "SOLVER.CHECKPOINT_PERIOD": at_least(1),
    "SOLVER.BASE_LR": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": SHARE_BELOW_1,
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.STEPS": Range(
        "iterations in ascending order, each >= 1",
        lambda v: (
            isinstance(v, list | tuple)
            and all(is_whole(step) and step >= 1 for step in v)
            and all(first < second for first, second in zip(v, v[1:], strict=False))
        ),
    ),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": at_least(0),
    "SOLVER.WARMUP_METHOD": one_of(("linear", "constant")),
    "TEST.EVAL_PERIOD": at_least(0),
    "TEST.DETECTIONS_PER_IMAGE": at_least(1),
    "VIS_PERIOD": at_least(0),
    "DATALOADER.NUM_WORKERS": at_least(0),
}


def check_schedule(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: a length, period or rate that no training can have; the message starts with
            its key.
    """
    for name, range_ in _RANGES.items():
        Key(None, range_).check(name, config_value(cfg, name))


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
