#!/usr/bin/env python
"""Fine-tune a detector on real photographs with and without a coupling, and report both.

Aerial photographs of tree crowns and a MobileNetV2 with ImageNet weights are downloaded. Where they
cannot be had, digits on photographs are made, and a small detector is trained on them from scratch.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from detectron2.data import MetadataCatalog
from runs import ABOUT_BETAS, COLUMNS, ROOT, read_results, table_row
from tabulate import tabulate

import corrdet.data  # registers the data
from corrdet.analysis.__main__ import main as analysis
from corrdet.engine.torchvision_weights import torchvision_weights
from corrdet.errors import CorrdetError

WEIGHTS = "torchvision://mobilenet_v2"
# Data set, and name in the table -> config.
PHOTOGRAPHS = (
    "neon_trees_val",
    {
        "baseline": "configs/photographs/atss_neon_trees_baseline.yaml",
        "concordance": "configs/photographs/atss_neon_trees_concordance.yaml",
    },
)
DIGITS = ("digits_val", {"concordance": "configs/quick/retinanet_concordance.yaml"})
PERIOD = 15  # seconds between lines on how far the trainings are


def main() -> None:
    start = time.monotonic()
    dataset, configs = choose()
    outputs = {name: ROOT / "output" / "demo" / name for name in configs}
    train_all(configs, outputs)
    folder = ROOT / "output" / "demo" / "report"
    report(outputs, dataset, folder)
    rows = [table_row(name, read_results(output)) for name, output in outputs.items()]
    print()
    print(tabulate(rows, ("loss", *COLUMNS), floatfmt=".1f"))
    print(f"\n{ABOUT_BETAS}")
    for name, output in outputs.items():
        print(f"\n{name + ':':13}{_short(output / 'model_final.pth')}", end="")
    print(f"\nreport:      {_short(folder / 'report.html')}")
    print(f"trainings and report: {(time.monotonic() - start) / 60:.1f} min")


def choose() -> tuple[str, dict[str, str]]:
    """Photographs if they and the weights can be had, else digits; it is said why."""
    try:
        torchvision_weights(WEIGHTS)
        corrdet.data.prepare_neon_trees()
    except CorrdetError as error:
        print(
            f"photographs or pre-trained weights cannot be had: {error}\n\n"
            "So the demo trains on digits, from scratch.",
            file=sys.stderr,
        )
        return DIGITS
    return PHOTOGRAPHS


def train_all(configs: Mapping[str, str], outputs: Mapping[str, Path]) -> None:
    """Train at the same time, each on its share of the cores; what they print is in ``demo.log``.

    Args:
        configs: name -> file, relative to the repository.
        outputs: name -> OUTPUT_DIR.
    """
    threads = max((os.cpu_count() or 1) // len(configs), 1)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    running = {}
    for name, config in configs.items():
        outputs[name].mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(ROOT / config)]
        command += ["OUTPUT_DIR", str(outputs[name])]
        print(f"training {name}: {_short(outputs[name] / 'demo.log')}", flush=True)
        with open(outputs[name] / "demo.log", "w") as log:
            running[name] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
    began, said = time.time(), ""
    try:
        while any(process.poll() is None for process in running.values()):
            time.sleep(1)
            if time.time() - began > PERIOD:
                began, line = time.time(), " | ".join(progress(n, outputs[n]) for n in running)
                if line != said:
                    print(line, flush=True)
                    said = line
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
    for name, process in running.items():
        if process.returncode:
            log = outputs[name] / "demo.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            sys.exit(f"training {name} failed, its log is {log}:\n{tail}")


def progress(name: str, output: Path) -> str:
    """How far a training is, by the last line of its ``metrics.json``."""
    try:
        last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
        return f"{name}: iteration {last['iteration']}, loss {last['total_loss']:.2f}"
    except (OSError, ValueError, IndexError, KeyError):
        return f"{name}: starting"


def report(outputs: Mapping[str, Path], dataset: str, folder: Path) -> None:
    """What ``python -m corrdet.analysis`` makes of trainings and their last evaluations.

    Args:
        outputs: name -> OUTPUT_DIR of a training.
        dataset: that was evaluated.
        folder: of the report.
    """
    data = MetadataCatalog.get(dataset)
    results = [out / "inference" / "coco_instances_results.json" for out in outputs.values()]
    analysis(
        [
            *("--ground-truth", data.json_file),
            *("--detections", *map(str, results)),
            *("--images", data.image_root),
            *("--training", *map(str, outputs.values())),
            *("--output", str(folder)),
        ]
    )


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
