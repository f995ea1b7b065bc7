import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from corrdet.evaluation import CorrelationEvaluator, rank_correlation


def run(evaluator, outputs):
    dicts = DatasetCatalog.get("tiny_val")
    evaluator.reset()
    for image, output in zip(dicts, outputs, strict=False):
        evaluator.process([image], [output])
    return evaluator.evaluate()


def detections(quality, seed=0):
    """Every object found, each with a shifted box; ``quality(iou-like, noise)`` gives the score."""
    rng = np.random.default_rng(seed)
    outputs = []
    for image in DatasetCatalog.get("tiny_val"):
        boxes, scores, classes = [], [], []
        for annotation in image["annotations"]:
            x, y, width, height = annotation["bbox"]
            shift = rng.uniform(0, 0.4)
            boxes.append([x + shift * width, y, x + width, y + height])
            scores.append(quality(1 - shift, rng.uniform()))
            classes.append(annotation["category_id"])
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.tensor(scores)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        outputs.append({"instances": instances})
    return outputs


@pytest.fixture
def evaluator(tiny_digits, tmp_path):
    return CorrelationEvaluator("tiny_val", output_dir=str(tmp_path))


def test_ap_is_pycocotools(evaluator, tmp_path):
    outputs = detections(lambda iou, noise: noise)
    ours = run(evaluator, outputs)["bbox"]
    theirs = run(COCOEvaluator("tiny_val", use_fast_impl=False, output_dir=str(tmp_path)), outputs)
    for name, value in theirs["bbox"].items():
        assert ours[name] == pytest.approx(value, nan_ok=True)


def test_beta_cls_of_perfect_and_reversed_scores(evaluator):
    results = run(evaluator, detections(lambda iou, noise: iou))["bbox"]
    assert results["beta_cls"] == pytest.approx(100)
    assert results["beta_cls-classes"] >= 5
    results = run(evaluator, detections(lambda iou, noise: 1 - iou))["bbox"]
    assert results["beta_cls"] == pytest.approx(-100)


def test_beta_cls_of_noise_is_the_mean_over_classes(evaluator):
    outputs = detections(lambda iou, noise: noise)
    results = run(evaluator, outputs)["bbox"]
    pairs = {}
    for image, output in zip(DatasetCatalog.get("tiny_val"), outputs, strict=False):
        for index, annotation in enumerate(image["annotations"]):
            x, _, width, _ = annotation["bbox"]
            x1, _, x2, _ = output["instances"].pred_boxes.tensor[index].tolist()
            pair = output["instances"].scores[index].item(), (x2 - x1) / width
            pairs.setdefault(annotation["category_id"], []).append(pair)
    defined = [
        rank_correlation(*zip(*values, strict=False))
        for values in pairs.values()
        if len(values) > 1
    ]
    assert results["beta_cls"] == pytest.approx(100 * np.mean(defined))
    assert results["beta_cls-classes"] == len(defined)


def test_beta_img_is_the_mean_over_images_where_it_is_defined(evaluator):
    outputs = detections(lambda iou, noise: noise)
    positives = [([0.1, 0.5, 0.9], [0.2, 0.3, 0.4]), ([0.9, 0.5, 0.1], [0.2, 0.3, 0.4])]
    positives += [([0.5, 0.5], [0.1, 0.9]), ([0.3], [0.4]), ([], [])]
    positives += [([0.1, 0.2, 0.3], [0.3, 0.9, 0.4]), ([1.0, 2, 3, 4], [0.2, 0.4, 0.1, 0.3])]
    for output, (scores, ious) in zip(outputs, positives, strict=False):
        output["positives"] = {"scores": torch.tensor(scores), "ious": torch.tensor(ious)}
    for _ in range(2):  # nothing is left of the evaluation before
        results = run(evaluator, outputs)["bbox"]
        assert results["beta_img"] == pytest.approx(100 * (1 - 1 + 0.5 + 0) / 4)
        assert results["beta_img-images"] == 4


def test_without_positives_there_is_no_beta_img(evaluator):
    assert "beta_img" not in run(evaluator, detections(lambda iou, noise: noise))["bbox"]


def test_without_detections_beta_cls_is_nan(evaluator):
    outputs = detections(lambda iou, noise: noise)
    for output in outputs:
        output["instances"] = output["instances"][torch.zeros(0, dtype=torch.int64)]
    results = run(evaluator, outputs)["bbox"]
    assert math.isnan(results["beta_cls"]) and results["beta_cls-classes"] == 0


def test_results_are_written_in_coco_format(evaluator, tmp_path):
    run(evaluator, detections(lambda iou, noise: noise))
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    content = json.loads(Path(MetadataCatalog.get("tiny_val").json_file).read_text())
    assert len(written) == len(content["annotations"])
