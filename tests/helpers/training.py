"""What tests train with: the quick configs, made small enough that a step takes a moment."""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tiny_overrides(entries: dict, output: Path) -> list:
    """``KEY VALUE ...`` that turn a quick config into one that trains in seconds.

    Args:
        entries: those of the fixture ``tiny_digits``.
        output: ``OUTPUT_DIR``.
    """
    return [
        "DATASETS.REGISTER", tuple(entries.values()),
        "DATASETS.TRAIN", ("tiny_train",),
        "DATASETS.TEST", ("tiny_val",),
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
        "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.RETINANET.NUM_CONVS", 1,
        # Of one image a process, the highest level has too few values for statistics.
        "MODEL.RETINANET.NORM", "",
        "INPUT.MIN_SIZE_TRAIN", (96,),
        "INPUT.MIN_SIZE_TEST", 96,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 4,
        "SOLVER.WARMUP_ITERS", 0,
        "DATALOADER.NUM_WORKERS", 0,
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip


def train(trainer, resume: bool = False):
    """A trainer, trained to its end, as train_net.py does it."""
    os.makedirs(trainer.cfg.OUTPUT_DIR, exist_ok=True)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def written(cfg) -> dict:
    """Iteration -> what was written of it."""
    return {line["iteration"]: line for line in lines_in(cfg.OUTPUT_DIR)}


def lines_in(output: str | os.PathLike) -> list[dict]:
    """What an output folder's metrics.json has, line by line."""
    return [json.loads(line) for line in (Path(output) / "metrics.json").read_text().splitlines()]
