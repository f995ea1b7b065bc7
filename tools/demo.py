#!/usr/bin/env python
"""Train a detector with the concordance loss on the embedded data, evaluate it, and show it."""

import time
from pathlib import Path

from detectron2.data import MetadataCatalog
from runs import ABOUT_BETAS, COLUMNS, ROOT, table_row, train
from tabulate import tabulate

import corrdet  # noqa: F401  (registers the data)
from corrdet.analysis.pictures import draw_detections, draw_scatter, load_results


def main() -> None:
    start = time.monotonic()
    output = ROOT / "output" / "demo"
    results = train("configs/quick/retinanet_concordance.yaml", output)

    data = MetadataCatalog.get("digits_val")
    pictures = output / "pictures"
    coco_eval = load_results(data.json_file, str(output / "inference/coco_instances_results.json"))
    draw_scatter(coco_eval, str(pictures / "score_against_iou.png"))
    draw_detections(coco_eval, data.image_root, str(pictures))

    print()
    print(tabulate([table_row("concordance", results)], ("loss", *COLUMNS), floatfmt=".1f"))
    print(f"\n{ABOUT_BETAS}")
    print(f"\ntrained weights: {_short(output / 'model_final.pth')}")
    print(f"pictures:        {_short(pictures)}")
    print(f"training and evaluation: {(time.monotonic() - start) / 60:.1f} min")


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
