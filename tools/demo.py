#!/usr/bin/env python
"""Train a detector with the concordance loss on the embedded data, evaluate it, and report it."""

import time
from pathlib import Path

from detectron2.data import MetadataCatalog
from runs import ABOUT_BETAS, COLUMNS, ROOT, table_row, train
from tabulate import tabulate

import corrdet.data  # noqa: F401  (registers the data)
from corrdet.analysis.__main__ import main as analysis


def main() -> None:
    start = time.monotonic()
    output = ROOT / "output" / "demo"
    results = train("configs/quick/retinanet_concordance.yaml", output)
    report(output)
    print()
    print(tabulate([table_row("concordance", results)], ("loss", *COLUMNS), floatfmt=".1f"))
    print(f"\n{ABOUT_BETAS}")
    print(f"\ntrained weights: {_short(output / 'model_final.pth')}")
    print(f"report:          {_short(output / 'report' / 'report.html')}")
    print(f"training and evaluation: {(time.monotonic() - start) / 60:.1f} min")


def report(output: Path, dataset: str = "digits_val") -> None:
    """What ``python -m corrdet.analysis`` makes of a training and its last evaluation.

    Args:
        output: OUTPUT_DIR of the training; the folder ``report`` is written there.
        dataset: that was evaluated.
    """
    data = MetadataCatalog.get(dataset)
    detections = output / "inference" / "coco_instances_results.json"
    analysis(
        [
            *("--ground-truth", data.json_file),
            *("--detections", str(detections)),
            *("--images", data.image_root),
            *("--training", str(output)),
            *("--output", str(output / "report")),
        ]
    )


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
