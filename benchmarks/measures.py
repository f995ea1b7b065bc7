"""Time and memory of all measures on a problem of the size of COCO's validation set.

``python -m benchmarks.measures`` prints how long ``corrdet.measures.measure`` takes as a share of
pycocotools' ``evaluate`` and ``accumulate`` on the same files; other implementations of COCO's
evaluation that are installed (faster-coco-eval, hotcoco) are measured too. ``--write DIR`` writes
the files.
"""

import argparse
import contextlib
import copy
import importlib
import io
import json
import os
import resource
import time

import numpy as np
from tabulate import tabulate

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.files import atomic_write
from corrdet.measures import measure

# Of COCO val2017; detections: 100 an image.
SIZE = {"images": 5000, "ground_truths": 36_000, "detections": 500_000, "categories": 80}
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def make_problem(
    images: int, ground_truths: int, detections: int, categories: int, seed: int = 0
) -> tuple[dict, list[dict]]:
    """Ground truth and detections in COCO's format, the same for the same arguments.

    Classes are as uneven, objects as small and as clustered as in COCO. A quarter of the detections
    are of objects, often several of one; their scores tell something of their IoU.

    Returns:
        content of an annotation file and of a results file.
    """
    rng = np.random.default_rng(seed)
    width, height = 640, 480
    # Some images hold many objects, and mostly of a few classes.
    crowding = rng.gamma(1.2, 1, images)
    image = np.sort(rng.choice(images, ground_truths, p=crowding / crowding.sum()))
    frequency = 1 / np.arange(1, categories + 1)
    favourites = rng.choice(categories, (images, 3), p=frequency / frequency.sum())
    category = favourites[image, rng.integers(3, size=ground_truths)]
    side = np.clip(np.exp(rng.normal(4.0, 1.0, (ground_truths, 1))), 4, 400)
    sides = side * np.exp(rng.normal(0, 0.3, (ground_truths, 2)))
    sides = np.minimum(sides, [width, height])
    corners = rng.uniform(0, 1, (ground_truths, 2)) * ([width, height] - sides)
    boxes = np.hstack([corners, sides]).round(2)
    area = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, ground_truths)
    is_crowd = rng.random(ground_truths) < 0.01

    true_index = rng.integers(ground_truths, size=detections // 4)
    shift = rng.gamma(1.5, 0.06, (len(true_index), 1)) * rng.normal(0, 1, (len(true_index), 4))
    found = boxes[true_index] + shift * np.tile(boxes[true_index][:, 2:], 2)
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    quality = 1.5 - 8 * np.abs(shift).max(axis=1)
    is_confused = rng.random(len(true_index)) < 0.1
    found_category = np.where(
        is_confused, rng.integers(categories, size=len(true_index)), category[true_index]
    )
    others = detections - len(true_index)
    other_sides = np.exp(rng.normal(4.0, 0.8, (others, 2)))
    other_corners = rng.uniform(0, 1, (others, 2)) * [width, height]
    dt_image = np.concatenate([image[true_index], np.arange(others) % images])
    dt_category = np.concatenate([found_category, favourites[dt_image[len(true_index) :], 0]])
    dt_boxes = np.vstack([found, np.hstack([other_corners, other_sides])]).round(2)
    logits = np.concatenate([quality, np.full(others, -3.0)]) + rng.normal(0, 1, detections)
    scores = (1 / (1 + np.exp(-logits))).round(5)

    columns = (image + 1, category + 1, boxes, area, is_crowd.astype(int))
    annotations = [
        {"id": i, "image_id": im, "category_id": c, "bbox": box, "area": a, "iscrowd": crowd}
        for i, (im, c, box, a, crowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]
    content = {
        "info": {"description": f"made by benchmarks.measures, seed {seed}"},
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "width": width, "height": height}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, categories + 1)],
        "annotations": annotations,
    }
    columns = (dt_image + 1, dt_category + 1, dt_boxes, scores)
    results = [
        {"image_id": im, "category_id": c, "bbox": box, "score": score}
        for im, c, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return content, results


def time_ours(content: dict, results: list[dict]) -> tuple[float, float, dict[str, float]]:
    """Seconds for the arrays, seconds for the measures, and the measures."""
    start = time.perf_counter()
    ground_truth = ground_truth_from_coco(content)
    detections = detections_from_coco(results, ground_truth)
    middle = time.perf_counter()
    measures = measure(ground_truth, detections).measures
    return middle - start, time.perf_counter() - middle, measures


def time_other(module: str, content: dict, results: list[dict]) -> tuple[float, list[float]]:
    """Seconds of evaluate and accumulate of a module with pycocotools' interface, and its stats."""
    coco_class, eval_class = {
        "pycocotools": ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval"),
        "faster_coco_eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster"),
        "hotcoco": ("hotcoco.COCO", "hotcoco.COCOeval"),
    }[module]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _load(coco_class)()
        ground_truth.dataset = copy.deepcopy(content)
        ground_truth.createIndex()
        evaluation = _load(eval_class)(
            ground_truth, ground_truth.loadRes(copy.deepcopy(results)), "bbox"
        )
        start = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        seconds = time.perf_counter() - start
        evaluation.summarize()
    return seconds, [float(value) for value in list(evaluation.stats)[: len(STATS)]]


def _load(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in SIZE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--write", metavar="DIR", help="write the files there, and stop")
    args = parser.parse_args(arguments)
    content, results = make_problem(**{name: getattr(args, name) for name in SIZE})
    if args.write:
        for name, data in (("ground_truth.json", content), ("detections.json", results)):
            with atomic_write(os.path.join(args.write, name)) as file:
                json.dump(data, file)
        return

    # First, so that the peak is not another's.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reading, measuring, measures = time_ours(content, results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours = reading + measuring
    reference, stats = time_other("pycocotools", content, results)
    rows = [("pycocotools", reference, 1.0, 0.0)]
    for module in ("faster_coco_eval", "hotcoco"):
        try:
            seconds, values = time_other(module, content, results)
        except ImportError:
            continue
        rows.append((module, seconds, seconds / reference, _largest_difference(stats, values)))
    ours_stats = [measures[name] / 100 for name in STATS]
    rows.append(
        ("corrdet, all measures", ours, ours / reference, _largest_difference(stats, ours_stats))
    )
    headers = ("", "seconds", "share", "largest difference of AP and AR")
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".3f", ".1e")))
    print(
        f"corrdet: {reading:.2f} s to check the rows and make arrays of them, {measuring:.2f} s to "
        f"match and measure; peak memory {peak:.0f} MiB, {before:.0f} of it before (the problem "
        "itself)."
    )
    print(f"ratio to pycocotools' evaluate and accumulate: {ours / reference:.3f}")


def _largest_difference(expected: list[float], values: list[float]) -> float:
    return float(np.abs(np.subtract(expected, values)).max())


if __name__ == "__main__":
    main()
