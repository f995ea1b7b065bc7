"""What every quick config does in 20 iterations on a few images, as numbers.

``python -m tests.recorded.record`` writes them to ``quick_configs.json`` beside this file;
``--compare`` says what differs from there, to the last bit. The test beside this one allows for
other machines' rounding.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Sums depend on how many threads add.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs" / "quick"
RECORD = Path(__file__).with_name("quick_configs.json")
CONFIGS = sorted(path.stem for path in QUICK.glob("*.yaml") if not path.stem.startswith("Base-"))
ITERATIONS = 20
COUNTS = {"train": 24, "val": 8}


def prepare(folder: Path) -> list[str]:
    """Make the data; returns the entries of DATASETS.REGISTER."""
    from corrdet.data import prepare_digits

    root = prepare_digits(folder / "digits", counts=COUNTS)
    return [f"recorded_{split}={root}/annotations/{split}.json:{root}/{split}" for split in COUNTS]


def record(config: str, entries: list[str], output: Path) -> dict:
    """Losses and gradient norms of each iteration, then detections and metrics.

    Args:
        config: name of a quick config.
        entries: as of :func:`prepare`.
        output: a folder for the evaluation's files.
    """
    from corrdet.data import build_train_loader
    from corrdet.engine import CorrdetTrainer, load_config

    overrides = [
        "DATASETS.REGISTER", tuple(entries),
        "DATASETS.TRAIN", ("recorded_train",),
        "DATASETS.TEST", ("recorded_val",),
        "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.WARMUP_ITERS", 5,
        "DATALOADER.NUM_WORKERS", 0,
        "OUTPUT_DIR", str(output),
    ]  # fmt: skip
    cfg = load_config(
        SimpleNamespace(config_file=str(QUICK / f"{config}.yaml"), opts=list(map(str, overrides)))
    )
    seed_all_rng(1)
    model = CorrdetTrainer.build_model(cfg)
    optimizer = CorrdetTrainer.build_optimizer(cfg, model)
    scheduler = CorrdetTrainer.build_lr_scheduler(cfg, optimizer)
    loader = build_train_loader(cfg, seed=1)
    model.train()
    iterations = []
    with EventStorage() as storage:
        for _ in range(ITERATIONS):
            losses = model(next(loader))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            optimizer.step()
            scheduler.step()
            storage.step()
            iterations.append(
                {name: loss.item() for name, loss in losses.items()} | {"gradient": norm.item()}
            )
    loader.close()
    results = CorrdetTrainer.test(cfg, model)
    with open(output / "inference" / "coco_instances_results.json") as file:
        detections = json.load(file)
    return {
        "iterations": iterations,
        "detections": _summary(detections),
        "metrics": {
            f"{kind}/{name}": None if math.isnan(value) else value
            for kind, values in results.items()
            for name, value in values.items()
        },
    }


def _summary(detections: list[dict]) -> dict:
    best = sorted(detections, key=lambda row: (-row["score"], row["image_id"], row["bbox"]))[:20]
    return {
        "number": len(detections),
        "sum of scores": math.fsum(row["score"] for row in detections),
        "best": [[row["image_id"], row["category_id"], row["score"], *row["bbox"]] for row in best],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recorded = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    different = []
    with tempfile.TemporaryDirectory() as folder:
        entries = prepare(Path(folder))
        for config in args.configs:
            now = record(config, entries, Path(folder) / config)
            if args.compare:
                same = now == recorded[config]
                print(
                    config,
                    "same" if same else f"DIFFERENT: {first_difference(now, recorded[config])}",
                    flush=True,
                )
                different += [] if same else [config]
            else:
                recorded[config] = now
                print(config, now["iterations"][-1], now["metrics"].get("bbox/AP"), flush=True)
    if args.compare:
        sys.exit(f"{len(different)} configs differ: {' '.join(different)}" if different else 0)
    RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


def first_difference(now, then, path: str = "") -> str | None:
    """Where two records differ first, and how."""
    if isinstance(now, dict) and isinstance(then, dict) and now.keys() == then.keys():
        pairs = [(f"{path}/{key}", now[key], then[key]) for key in now]
    elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        both = enumerate(zip(now, then, strict=True))
        pairs = [(f"{path}/{index}", *values) for index, values in both]
    else:
        return None if now == then else f"{path}: {now!r}, was {then!r}"
    found = (first_difference(a, b, place) for place, a, b in pairs)
    return next(filter(None, found), None)


if __name__ == "__main__":
    main()
