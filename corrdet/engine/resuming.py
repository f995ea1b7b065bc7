"""What a training goes on with, what it cannot go on with, and what was in its folder before."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from corrdet.config_keys import declare
from corrdet.options import Key, one_of

from .checkpoint import CheckpointError

declare(
    "SOLVER",
    RESUME_LR=Key(
        "checkpoint",
        one_of(("checkpoint", "config")),
        "with --resume, where BASE_LR and BIAS_LR_FACTOR are taken from",
    ),
)

# Of a checkpoint's config, what says nothing about the training.
_ELSEWHERE = re.compile(
    r"OUTPUT_DIR|VERSION|CUDNN_BENCHMARK|MODEL\.(WEIGHTS|DEVICE)|DATALOADER\.NUM_WORKERS|"
    r"DATASETS\.REGISTER|SOLVER\.(CHECKPOINT_PERIOD|RESUME_LR)|TEST\..*"
)
# What an optimizer keeps in its groups, and so takes from the checkpoint.
_IN_GROUPS = re.compile(
    r"SOLVER\.(MOMENTUM|NESTEROV|WEIGHT_DECAY|WEIGHT_DECAY_NORM|WEIGHT_DECAY_BIAS)"
)
_RATES = ("SOLVER.BASE_LR", "SOLVER.BIAS_LR_FACTOR")
# Files and folders that a training writes, and a later one would write into or take for its own.
_WRITTEN = re.compile(
    r"model_(\d+|final|final_ema|best)\.pth|model_best\.json|last_checkpoint|metrics\.json|"
    r"events\.out\.tfevents\..*|inference|inference_TTA"
)


def config_differences(old: str | None, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Keys whose values say that another training is asked for.

    Args:
        old: the checkpoint's config as YAML; None where it has none.
        cfg: that of this run.

    Returns:
        key -> value then, value now; None where there is no such key.
    """
    if old is None:
        return {}
    then, now = dict(_flat(yaml.safe_load(old))), dict(_flat(yaml.safe_load(cfg.dump())))
    return {
        key: (then.get(key), now.get(key))
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not _ELSEWHERE.fullmatch(key)
    }


def _flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), list(value) if isinstance(value, tuple) else value


def _listed(differences: Mapping[str, tuple[Any, Any]], most: int = 6) -> str:
    # What decides on the model and its optimizer first.
    keys = sorted(differences, key=lambda k: (not k.startswith("MODEL."), k))
    parts = [f"{k} was {differences[k][0]!r}, is {differences[k][1]!r}" for k in keys[:most]]
    if len(keys) > most:
        parts.append(f"and {len(keys) - most} more")
    return "; ".join(parts)


def check_resumable(
    checkpoint: Mapping[str, Any],
    path: str,
    cfg: CfgNode,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Look for what would break a resumed training, or be changed in it without a word.

    Args:
        checkpoint: what is in the file, before anything of it is loaded.
        path: of the file, for messages.
        cfg: of this run, as are the model and the optimizer.

    Raises:
        CheckpointError: the training of the checkpoint is another one.
    """
    trainer = checkpoint.get("trainer")
    problem = None
    differences: dict[str, tuple[Any, Any]] = {}
    if not isinstance(trainer, Mapping) or not {"_trainer", "random_states"} <= trainer.keys():
        problem = "it has not been saved by corrdet's trainer (but by Detectron2's, perhaps)"
    else:
        differences = config_differences(trainer.get("config"), cfg)
        problem = (
            _other_model(checkpoint["model"], model)
            or _other_optimizer(trainer["_trainer"]["optimizer"], optimizer)
            or _other_precision(trainer["_trainer"], cfg)
        )
    if problem:
        listed = f" ({_listed(differences)})" if differences else ""
        raise CheckpointError(
            f"--resume cannot go on with {path}: {problem}{listed}. Set the config as it was, or "
            f"begin a new training from these weights: without --resume, with MODEL.WEIGHTS {path} "
            "and another OUTPUT_DIR"
        )
    _say_differences(differences, cfg, path)


def _other_model(weights: Mapping[str, Any], model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        stored = weights.get(name, weights.get(f"module.{name}"))
        if stored is None:
            return f"its model has no {name}"
        if tuple(stored.shape) != tuple(parameter.shape):
            return (
                f"{name} has the shape {tuple(stored.shape)} there, {tuple(parameter.shape)} here"
            )
    return None


def _other_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    groups = state["param_groups"]
    for option in ("betas", "momentum"):  # PyTorch's versions differ in the others
        if (option in groups[0]) != (option in optimizer.param_groups[0]):
            return "it was trained with another optimizer"
    sizes, own = ([len(group["params"]) for group in g] for g in (groups, optimizer.param_groups))
    if sizes != own:
        return (
            f"its optimizer has other groups of parameters: {len(sizes)} with {sum(sizes)} "
            f"parameters, here {len(own)} with {sum(own)}"
        )
    return None


def _other_precision(state: Mapping[str, Any], cfg: CfgNode) -> str | None:
    if cfg.SOLVER.AMP.ENABLED == ("grad_scaler" in state):
        return None
    was, now = ("with", "without")[:: 1 if "grad_scaler" in state else -1]
    return f"it was trained {was} mixed precision, and SOLVER.AMP.ENABLED asks for one {now}"


def _say_differences(differences: Mapping[str, tuple[Any, Any]], cfg: CfgNode, path: str) -> None:
    logger = logging.getLogger(__name__)
    taken = cfg.SOLVER.RESUME_LR == "config"
    kept, new = {}, {}
    for key, values in differences.items():
        is_kept = _IN_GROUPS.fullmatch(key) or (key in _RATES and not taken)
        (kept if is_kept else new)[key] = values
    if kept:
        rates = " (SOLVER.RESUME_LR config takes the learning rate)" if {*_RATES} & {*kept} else ""
        logger.warning("ignored, as %s goes on as it was: %s%s", path, _listed(kept), rates)
    if new:
        logger.warning(
            "the training goes on with another config than that of %s: %s", path, _listed(new)
        )


def take_learning_rates(optimizer: torch.optim.Optimizer, scheduler, rates: list[float]) -> None:
    """Have a resumed training go on with other base rates, where its schedule is.

    Args:
        optimizer, scheduler: with the checkpoint's state.
        rates: base rate of each group of the optimizer.
    """
    base = getattr(scheduler, "base_lrs", None)
    for index, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
        old = group.get("initial_lr", group["lr"])
        group["lr"] = group["lr"] * rate / old if old else rate
        if "initial_lr" in group:
            group["initial_lr"] = rate
        if base is not None:
            base[index] = rate


def old_files(folder: str) -> list[str]:
    """Files and folders of an earlier training; none unless there is a checkpoint or a metric."""
    if not os.path.isdir(folder):
        return []
    names = sorted(name for name in os.listdir(folder) if _WRITTEN.fullmatch(name))
    metrics = os.path.join(folder, "metrics.json")
    has_run = any(name.endswith(".pth") for name in names) or (
        os.path.isfile(metrics) and os.path.getsize(metrics) > 0
    )
    return names if has_run else []


def move_aside(folder: str, names: list[str]) -> str:
    """Move files of an earlier training to ``folder/previous_1``, or the next number.

    ``metrics.json`` is copied and emptied, as the writers have it open already.

    Returns:
        the folder.
    """
    number = 1
    while os.path.exists(target := os.path.join(folder, f"previous_{number}")):
        number += 1
    os.makedirs(target)
    for name in names:
        source = os.path.join(folder, name)
        if name == "metrics.json":
            shutil.copy2(source, target)
            os.truncate(source, 0)
        elif os.path.exists(source):
            os.rename(source, os.path.join(target, name))
    return target


def truncate_metrics(path: str, start_iter: int) -> None:
    """Cut off the lines of ``metrics.json`` that the resumed training will write again.

    Args:
        path: a file of JSON lines with an ``iteration`` each, or none.
        start_iter: the first iteration that is trained again.
    """
    if not os.path.isfile(path):
        return
    kept = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError):
                break  # the line that a killed process was writing
            if not line.endswith(b"\n") or iteration >= start_iter:
                break
            kept += len(line)
    # In place: the writer has the file open for appending already.
    os.truncate(path, kept)
