"""Results that find nothing, made from results that find nearly everything."""

import numpy as np
import pytest

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import measure
from corrdet.measures.explaining import explain

WIDTH, HEIGHT = 1000, 600


@pytest.fixture
def problem():
    """30 images with 4 objects of 4 classes each, and a detector that is a little off."""
    rng = np.random.default_rng(0)
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(30)],
        "categories": [{"id": c, "name": f"class {c}"} for c in (0, 1, 2, 3, 4)],
        "annotations": [],
    }
    rows = []
    for number in range(120):
        sides = rng.uniform(60, 150, 2)
        corner = rng.uniform(0, 1, 2) * ([WIDTH, HEIGHT] - sides)
        box = np.concatenate([corner, sides])
        row = {"image_id": number // 4, "category_id": int(rng.integers(1, 5))}
        content["annotations"].append({**row, "id": number + 1, "bbox": box.tolist()})
        noisy = (box + rng.normal(0, 3, 4)).tolist()
        rows.append({**row, "bbox": noisy, "score": float(rng.uniform(0.3, 1))})
    return content, rows


def explained(content, rows, change):
    gt = ground_truth_from_coco(content)
    changed = [{**row, "bbox": np.array(row["bbox"])} for row in rows]
    for row in changed:
        change(row)
        row["bbox"] = row["bbox"].tolist()
    return explain(measure(gt, detections_from_coco(changed, gt)))


def shift(by):
    def change(row):
        row["category_id"] += by

    return change


def scale(*by):
    def change(row):
        row["bbox"] = row["bbox"] * by

    return change


def corners(row):
    row["bbox"][2:] += row["bbox"][:2]


def centers(row):
    row["bbox"][:2] += row["bbox"][2:] / 2


def normalised_centers(row):
    centers(row)
    scale(1 / WIDTH, 1 / HEIGHT, 1 / WIDTH, 1 / HEIGHT)(row)


def padded(row):
    row["bbox"] *= 640 / WIDTH
    row["bbox"][1] += (640 - HEIGHT * 640 / WIDTH) / 2


def permuted(row):
    row["category_id"] = {1: 2, 2: 4, 3: 1, 4: 3}[row["category_id"]]


def shifted_and_within_1(row):
    shift(-1)(row)
    scale(1 / WIDTH, 1 / HEIGHT, 1 / WIDTH, 1 / HEIGHT)(row)


@pytest.mark.parametrize(
    ("change", "cause", "remedy"),
    [
        (shift(-1), "class ids are shifted by 1: boxes of class", "With ids 1 larger"),
        (permuted, "class ids are others than those of the ground truth", "Whatever their classes"),
        (
            scale(1 / WIDTH, 1 / HEIGHT, 1 / WIDTH, 1 / HEIGHT),
            "the boxes are within 0..1",
            "Multiplied by width and height of their image",
        ),
        (normalised_centers, "the boxes are within 0..1", "x and y as their center"),
        (corners, "the boxes are x1, y1, x2, y2 in place of", "With --format xyxy"),
        (scale(0.64), "images whose longer side was resized to 640", "At the scale"),
        (scale(0.64, 640 / HEIGHT, 0.64, 640 / HEIGHT), "resized to 640 x 640", "At the scale"),
        (padded, "images resized and padded to 640 x 640", "At the scale"),
        (scale(3.0), "images about 3.0", "At the scale"),
        (shifted_and_within_1, "the boxes are within 0..1 and class ids are shifted by 1", "With"),
    ],
)
def test_causes_are_found(problem, change, cause, remedy):
    said = explained(*problem, change)
    assert said.startswith("AP50 is ") and cause in said, said
    assert remedy.lower() in said.lower()
    share = int(said.rpartition(", ")[2].split()[0])
    assert share > 80


def test_what_has_no_cause(problem):
    rng = np.random.default_rng(1)

    def anywhere(row):
        row["bbox"] = rng.uniform(50, 400, 4)

    assert "Are these results of other images" in explained(*problem, anywhere)


def test_results_that_find_something_are_not_explained(problem):
    assert explained(*problem, lambda row: None) is None
    content, _ = problem
    gt = ground_truth_from_coco(content)
    assert explain(measure(gt, detections_from_coco([], gt))) is None
