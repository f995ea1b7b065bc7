"""Federated annotations, against LVIS' rules written as plain loops."""

import json
from collections import defaultdict

import numpy as np
import pytest

from corrdet.coco import CocoFileError, detections_from_coco, ground_truth_from_coco
from corrdet.measures import bootstrap, measure
from corrdet.measures.matching import AREA_RANGES
from tests.helpers.problems import detections, ground_truth, random_problem


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def lvis_problem(seed):
    content, rows = random_problem(seed, images=10, ties=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    for image in content["images"]:
        image["neg_category_ids"] = [c for c in (5, 1, 9, 4) if rng.random() < 0.4]
        image["not_exhaustive_category_ids"] = [c for c in (5, 1, 9, 4) if rng.random() < 0.3]
    for category, frequency in zip(content["categories"], "rcff", strict=True):
        category["frequency"] = frequency
    # More than 300 in an image.
    rows += [{**row, "score": row["score"] * 0.9} for row in rows] + rows
    return content, rows


def evaluated(content, rows, limit):
    """Category -> image -> detections, best first."""
    by_image = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    positives = {(a["image_id"], a["category_id"]) for a in content["annotations"] if a["area"] > 0}
    negatives = {(i["id"], c) for i in content["images"] for c in i["neg_category_ids"]}
    kept = defaultdict(lambda: defaultdict(list))
    for image in sorted(by_image):
        for row in sorted(by_image[image], key=lambda row: -row["score"])[:limit]:
            key = image, row["category_id"]
            if key in positives | negatives and row["bbox"][2] * row["bbox"][3] > 0:
                kept[key[1]][image].append(row)
    return kept


def matched(content, by_image, category, threshold, area):
    """(score, is true, is ignored) of the detections of a class, and its number of objects."""
    low, high = AREA_RANGES[area]
    found, count = [], 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        objects = [
            a
            for a in content["annotations"]
            if (a["image_id"], a["category_id"]) == (image["id"], category) and a["area"] > 0
        ]
        ignored = [not low <= a["area"] <= high for a in objects]
        count += ignored.count(False)
        order = sorted(range(len(objects)), key=ignored.__getitem__)
        free = set(order)
        for row in by_image.get(image["id"], ()):
            best, best_iou = None, min(threshold, 1 - 1e-10)
            for index in order:
                if index not in free:
                    continue
                if best is not None and not ignored[best] and ignored[index]:
                    break
                overlap = iou(row["bbox"], objects[index]["bbox"])
                if overlap >= best_iou:
                    best, best_iou = index, overlap
            if best is None:
                size = row["bbox"][2] * row["bbox"][3]
                not_all = category in image["not_exhaustive_category_ids"]
                found.append((row["score"], False, not_all or not low <= size <= high))
            else:
                free.discard(best)
                found.append((row["score"], not ignored[best], ignored[best]))
    return found, count


def average_precision(found, count):
    ranked = sorted(found, key=lambda row: -row[0])
    true, false, points = 0, 0, []
    for _, is_true, is_ignored in ranked:
        true, false = true + (is_true and not is_ignored), false + (not is_true and not is_ignored)
        points.append((true / count, true / (true + false + np.spacing(1))))
    values = []
    for recall in np.linspace(0, 1, 101):
        values.append(max((p for r, p in points if r >= recall), default=0.0))
    return 100 * np.mean(values), 100 * true / count


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_lvis(seed):
    content, rows = lvis_problem(seed)
    gt = ground_truth_from_coco(content)
    assert gt.federated is not None and not gt.is_crowd.any()
    results = measure(gt, detections_from_coco(rows, gt))
    assert results.max_detections == 300
    kept = evaluated(content, rows, 300)
    assert sum(len(r) for images in kept.values() for r in images.values()) == len(
        results.matches.scores
    )
    for area, ap_key, ar_key in (("all", "AP", "AR300"), ("small", "APs", "ARs")):
        for row, category in enumerate(gt.category_ids):
            pairs = []
            for threshold in np.linspace(0.5, 0.95, 10):
                found, count = matched(content, kept[category], category, threshold, area)
                pairs.append(average_precision(found, count) if count else (np.nan, np.nan))
            ap, recall = np.mean(pairs, axis=0)
            per_class = results.per_class
            assert per_class[ap_key][row] == pytest.approx(ap, abs=1e-9, nan_ok=True)
            assert per_class[ar_key][row] == pytest.approx(recall, abs=1e-9, nan_ok=True)
    for letter, categories in {"r": [5], "c": [1], "f": [9, 4]}.items():
        values = results.per_class["AP"][[gt.category_ids.index(c) for c in categories]]
        expected = np.nanmean(values) if np.isfinite(values).any() else np.nan
        assert results.measures[f"AP{letter}"] == pytest.approx(expected, nan_ok=True)
    assert "AR300" in results.measures and "AR100" not in results.measures


def test_what_is_not_annotated_is_not_wrong():
    box, other = (10, 10, 50, 50), (100, 100, 50, 50)
    content = ground_truth([(1, 1, box)], images=(1, 2), categories=(1, 2))
    rows = detections([(1, 1, box, 0.5), (1, 1, other, 0.9), (1, 2, box, 0.9), (2, 1, box, 0.9)])
    assert ap_of(content, rows) == 33
    content["images"][0]["neg_category_ids"] = []
    # Nothing is known of class 2 in image 1, nor of class 1 in image 2.
    assert ap_of(content, rows) == 50
    content["images"][0]["not_exhaustive_category_ids"] = [1]
    assert ap_of(content, rows) == 100
    content["images"][1]["neg_category_ids"] = [1, 77]
    assert ap_of(content, rows) == 50


def ap_of(content, rows):
    gt = ground_truth_from_coco(json.loads(json.dumps(content)))
    return round(measure(gt, detections_from_coco(rows, gt)).measures["AP50"])


def test_groups_of_frequencies_have_intervals():
    content, rows = lvis_problem(0)
    gt = ground_truth_from_coco(content)
    results = measure(gt, detections_from_coco(rows, gt))
    samples = bootstrap([results], 5)
    for key in ("APr", "APc", "APf"):
        assert np.isfinite(samples.samples[key]).any()


def test_a_list_of_classes_that_is_none():
    content = ground_truth([(1, 1, (10, 10, 50, 50))])
    content["images"][1]["neg_category_ids"] = 3
    with pytest.raises(CocoFileError, match="image 2: expected a list of category ids as neg_"):
        ground_truth_from_coco(content)


def test_more_detections_of_a_class():
    boxes = [(k % 20 * 9, k // 20 * 9, 5, 5) for k in range(200)]
    content = ground_truth([(1, 1, box) for box in boxes], images=(1,), categories=(1,))
    rows = detections([(1, 1, box, 0.5) for box in boxes])
    gt = ground_truth_from_coco(content)
    found = detections_from_coco(rows, gt)
    assert measure(gt, found).measures["AR100"] == 50
    more = measure(gt, found, max_detections=200)
    assert more.measures["AP"] == more.measures["AR200"] == 100 and more.num_left_out == 0
    assert "AR100" not in more.measures and more.measures["ARs"] == 100
