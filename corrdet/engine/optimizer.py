"""The optimizers of ``SOLVER.OPTIMIZER``."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from corrdet.config_keys import check_keys, declare
from corrdet.options import Key, Range

OPTIMIZERS = ("SGD", "ADAMW")

# SOLVER.CLIP_GRADIENTS.CLIP_TYPE, Detectron2's own key, can also be "full_model".
declare(
    "SOLVER",
    OPTIMIZER=Key(
        "SGD",
        Range(
            f"one of {', '.join(map(repr, OPTIMIZERS))}",
            lambda v: isinstance(v, str) and v.upper() in OPTIMIZERS,
            OPTIMIZERS,
        ),
        "SGD is Detectron2's own, with momentum",
    ),
)


def scale_to_processes(cfg: CfgNode) -> CfgNode:
    """The config for as many processes as there are, see ``SOLVER.REFERENCE_WORLD_SIZE``.

    Detectron2 scales the learning rate with the batch, whatever the optimizer; where that is not
    SGD, which the rule is of, it is said.
    """
    size, reference = comm.get_world_size(), cfg.SOLVER.REFERENCE_WORLD_SIZE
    scaled = DefaultTrainer.auto_scale_workers(cfg, size)
    if reference not in (0, size) and cfg.SOLVER.OPTIMIZER.upper() != "SGD":
        logging.getLogger(__name__).warning(
            "SOLVER.REFERENCE_WORLD_SIZE %d makes BASE_LR %g of %g for %d process(es): in "
            "proportion to the batch, which is a rule for SGD; with %s, by the square root it "
            "would be %g",
            reference,
            scaled.SOLVER.BASE_LR,
            cfg.SOLVER.BASE_LR,
            size,
            cfg.SOLVER.OPTIMIZER,
            cfg.SOLVER.BASE_LR * (size / reference) ** 0.5,
        )
    return scaled


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER``: "SGD" is Detectron2's, "ADAMW" has the same parameter groups.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``: "full_model" clips the norm of all gradients together,
    beside Detectron2's own types, which clip each parameter's.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if node.ENABLED and node.CLIP_TYPE == "full_model":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_optimizer(cfg, model)

        def clip(optimizer, *_):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, node.CLIP_VALUE, node.NORM_TYPE)

        optimizer.register_step_pre_hook(clip)
        return optimizer
    check_keys(cfg, "SOLVER")
    if cfg.SOLVER.OPTIMIZER.upper() == "SGD":
        return build_sgd(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
