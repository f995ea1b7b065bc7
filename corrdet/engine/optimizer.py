"""The optimizers of ``SOLVER.OPTIMIZER``."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
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
