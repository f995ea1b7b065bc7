import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

from corrdet.coco import (
    detections_from_coco,
    ground_truth_from_coco,
    read_detections,
    read_ground_truth,
)
from corrdet.engine.evaluator import CorrelationEvaluator
from corrdet.measures import measure, rank_correlation
from tests.helpers.problems import SIZE, random_problem


def run(evaluator, outputs, img_ids=None):
    dicts = DatasetCatalog.get("tiny_val")
    evaluator.reset()
    for image, output in zip(dicts, outputs, strict=False):
        evaluator.process([image], [output])
    return evaluator.evaluate(img_ids=img_ids)


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
    assert results["oLRP"] == 100 and results["AP60"] == 0


def test_results_are_written_in_coco_format(evaluator, tmp_path):
    run(evaluator, detections(lambda iou, noise: noise))
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    content = json.loads(Path(MetadataCatalog.get("tiny_val").json_file).read_text())
    assert len(written) == len(content["annotations"])


def test_all_measures_are_those_of_the_written_files(evaluator, tmp_path):
    results = run(evaluator, detections(lambda iou, noise: noise))["bbox"]
    gt = read_ground_truth(MetadataCatalog.get("tiny_val").json_file)
    detected = read_detections(tmp_path / "coco_instances_results.json", gt)
    expected = measure(gt, detected)
    for name, value in expected.measures.items():
        assert results[name] == pytest.approx(value, nan_ok=True), name
    written = json.loads((tmp_path / "measures.json").read_text())
    assert written == {"bbox": expected.as_dict()}
    assert {"oLRP", "AP_upper", "PCC", "AR100"} <= results.keys()


def test_of_some_of_the_images(evaluator, tmp_path):
    outputs = detections(lambda iou, noise: noise)
    image_ids = [image["image_id"] for image in DatasetCatalog.get("tiny_val")][:3]
    some = run(evaluator, outputs, image_ids)["bbox"]
    content = json.loads(Path(MetadataCatalog.get("tiny_val").json_file).read_text())
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    for key, id_key in (("images", "id"), ("annotations", "image_id")):
        content[key] = [row for row in content[key] if row[id_key] in image_ids]
    gt = ground_truth_from_coco(content)
    kept = [row for row in results if row["image_id"] in image_ids]
    expected = measure(gt, detections_from_coco(kept, gt)).measures
    assert some["oLRP"] == pytest.approx(expected["oLRP"])
    assert some["AP"] == pytest.approx(expected["AP"])
    assert some["correlated-detections"] == expected["correlated-detections"]


def test_aic_of_the_positives(evaluator):
    outputs = detections(lambda iou, noise: noise)
    positives = [([0.1, 0.5], [0.2, 0.3]), ([0.9], [0.5]), ([], [])]
    for output, (scores, ious) in zip(outputs, positives, strict=False):
        output["positives"] = {"scores": torch.tensor(scores), "ious": torch.tensor(ious)}
    for _ in range(2):
        results = run(evaluator, outputs)["bbox"]
        assert results["AIC"] == pytest.approx(0.1 + 0.2 + 0.4)
        assert results["AIC-mean"] == pytest.approx(100 * 0.7 / 3)
    assert "AIC" not in run(evaluator, detections(lambda iou, noise: noise))["bbox"]


def test_bounds_at_image_level(evaluator):
    outputs, upper, lower = (
        detections(quality)
        for quality in (
            lambda iou, noise: noise,
            lambda iou, noise: iou,
            lambda iou, noise: 1 - iou,
        )
    )
    for output, best, worst in zip(outputs, upper, lower, strict=True):
        output["instances_upper"], output["instances_lower"] = best["instances"], worst["instances"]
    for _ in range(2):
        results = run(evaluator, outputs)["bbox"]
        for bound, alone in (("upper", upper), ("lower", lower)):
            expected = run(evaluator, alone)["bbox"]
            assert "AP_img_upper" not in expected
            for name in ("AP", "AP50", "AP75"):
                assert results[f"{name}_img_{bound}"] == pytest.approx(expected[name])
    assert results["AP_img_lower"] < results["AP"] < results["AP_img_upper"]


def test_a_diverged_model_is_measured(evaluator):
    outputs = detections(lambda iou, noise: noise)
    outputs[0]["instances"].pred_boxes.tensor[:] = math.nan
    assert run(evaluator, outputs)["bbox"]["oLRP"] > 0


def test_masks(tmp_path):
    content, _ = random_problem(3, images=4, masks=True)
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    name = "masks_val"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(json_file=str(path))
    try:
        evaluator = CorrelationEvaluator(name, output_dir=str(tmp_path))
        evaluator.reset()
        gt = ground_truth_from_coco(content, "segm")
        for image, image_id in enumerate(gt.image_ids):
            rows = np.flatnonzero((gt.images == image) & ~gt.is_crowd)
            instances = Instances((SIZE, SIZE))
            masks = [mask_utils.decode(gt.masks[row]) for row in rows]
            masks = torch.tensor(np.array(masks).reshape(-1, SIZE, SIZE)).bool()
            instances.pred_masks = masks & (torch.arange(SIZE) % 7 > 0)  # with stripes left out
            corners = gt.boxes[rows].copy()
            corners[:, 2:] += corners[:, :2]
            instances.pred_boxes = Boxes(torch.tensor(corners))
            instances.pred_classes = torch.tensor(np.array(gt.category_ids)[gt.categories[rows]])
            instances.scores = torch.linspace(0.1, 0.9, len(rows))
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert results["bbox"]["oLRP_Loc"] == pytest.approx(0, abs=0.01)
    assert results["segm"]["oLRP_Loc"] == pytest.approx(100 / 7, abs=3)
    # Theirs, and ours of the file.
    detected = read_detections(tmp_path / "coco_instances_results.json", gt, "segm")
    expected = measure(gt, detected, iou_type="segm")
    assert results["segm"]["AP"] == pytest.approx(expected.measures["AP"])
    assert results["segm"]["AP_upper"] == pytest.approx(expected.measures["AP_upper"])
    written = json.loads((tmp_path / "measures.json").read_text())
    assert written.keys() == {"bbox", "segm"} and written["segm"] == expected.as_dict()
