"""Keypoints of users' data: from the names in the file to keypoint AP."""

import copy
import json
import logging
import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.builtin_meta import (
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from corrdet.coco import AnnotationError
from corrdet.data import CorrdetDatasetMapper, load_dataset, training_dicts
from corrdet.data.keypoints import put_keypoints
from corrdet.engine import ConfigError, CorrdetTrainer, load_config
from tests.helpers.training import ROOT
from tests.helpers.users_data import SIDE, rectangles, write

NAMES = ["nose", "left_ear", "right_ear"]
SIGMAS = [0.1, 0.2, 0.3]


def keypoints(content: dict) -> dict:
    """Each object of the first class gets a nose in the middle and ears at its sides."""
    content["categories"] = [{"id": 1, "name": "cat", "keypoints": NAMES}]
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        middle = y + height / 2
        row["category_id"] = 1
        row["keypoints"] = [x + width / 2, middle, 2, x, middle, 2, x + width, middle, 1]
        row["num_keypoints"] = 3
    return content


@pytest.fixture
def make_cfg(tmp_path):
    """Function of contents and overrides: the config of a tiny Keypoint R-CNN."""
    names = []

    def make(train: dict, *overrides, test: dict | None = None):
        entries = [f"kp_train={write(tmp_path, train)}"]
        entries.append(f"kp_test={write(tmp_path, train if test is None else test, 'test')}")
        opts = [
            "DATASETS.REGISTER", tuple(entries),
            "DATASETS.TRAIN", ("kp_train",),
            "DATASETS.TEST", ("kp_test",),
            "MODEL.KEYPOINT_ON", True,
            "MODEL.ROI_HEADS.NUM_CLASSES", 1,
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3,
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,),
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
            "TEST.KEYPOINT_OKS_SIGMAS", SIGMAS,
            "INPUT.RANDOM_FLIP", "horizontal",
            "INPUT.MIN_SIZE_TRAIN", (SIDE,),
            "SOLVER.MAX_ITER", 2,
            "SOLVER.IMS_PER_BATCH", 2,
            "DATALOADER.NUM_WORKERS", 0,
            "OUTPUT_DIR", str(tmp_path / "output"),
        ]  # fmt: skip
        path = str(ROOT / "configs/quick/Base-rcnn-digits.yaml")
        names.extend(("kp_train", "kp_test"))
        opts = [*map(str, opts), *map(str, overrides)]
        return load_config(Namespace(config_file=path, opts=opts))

    yield make
    for name in set(names) & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def content(tmp_path):
    return keypoints(rectangles(tmp_path))


@pytest.mark.slow
def test_trains_and_measures(content, make_cfg, tmp_path):
    del content["annotations"][0]["keypoints"], content["annotations"][0]["num_keypoints"]
    plain = (
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal",
    )  # fmt: skip
    for more in ((), plain):
        cfg = make_cfg(content, *more)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        trainer = CorrdetTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        results = trainer._last_eval_results
        assert results["keypoints"]["AP"] >= 0 and "beta_cls" in results["bbox"]
        lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
        assert any("loss_keypoint" in json.loads(line) for line in lines)


def test_names_and_pairs_come_from_the_file(content, make_cfg, caplog):
    cfg = make_cfg(content)
    with caplog.at_level(logging.INFO, "corrdet"):
        training_dicts(cfg)
    metadata = MetadataCatalog.get("kp_train")
    assert metadata.keypoint_names == NAMES
    assert metadata.keypoint_flip_map == [("left_ear", "right_ear")]
    assert "change places in mirrored images: left_ear and right_ear" in caplog.text


def test_coco_person_is_detectron2s():
    name = "kp_person"
    put_keypoints(name, [{"id": 1, "keypoints": list(COCO_PERSON_KEYPOINT_NAMES)}])
    metadata = MetadataCatalog.get(name)
    assert tuple(metadata.keypoint_names) == COCO_PERSON_KEYPOINT_NAMES
    assert tuple(metadata.keypoint_flip_map) == COCO_PERSON_KEYPOINT_FLIP_MAP
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", [CorrdetDatasetMapper, DatasetMapper])
def test_mirrored_images_swap_them(content, make_cfg, kind):
    cfg = make_cfg(content)
    record = training_dicts(cfg)[0]
    mapper = kind(cfg, is_train=True)
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        mapped = mapper(copy.deepcopy(record))["instances"]
        x, _, width, _ = record["annotations"][0]["bbox"]
        boxes, points = mapped.gt_boxes.tensor, mapped.gt_keypoints.tensor
        is_mirrored = abs(float(boxes[0, 0]) - x) > 1
        seen.add(is_mirrored)
        # Left of the box is the left ear: also in the mirrored image.
        assert points.shape == (2, 3, 3)
        assert float(points[0, 1, 0]) < float(points[0, 2, 0])
        visibility = [2.0, 1.0, 2.0] if is_mirrored else [2.0, 2.0, 1.0]
        assert points[0, :, 2].tolist() == visibility
    assert seen == {True, False}


def test_objects_without_keypoints_have_invisible_ones(content, make_cfg):
    for row in content["annotations"][::2]:
        row["keypoints"] = row["num_keypoints"] = None
    cfg = make_cfg(content)
    mapper = CorrdetDatasetMapper(cfg, is_train=True)
    for record in training_dicts(cfg):
        points = mapper(record)["instances"].gt_keypoints.tensor
        assert points[0, :, 2].tolist() == [0, 0, 0] and points[1, :, 2].all()


def test_the_mapper_may_be_made_before_the_data_are_loaded(content, make_cfg):
    cfg = make_cfg(content)
    assert CorrdetDatasetMapper(cfg, is_train=True).keypoint_hflip_indices == [0, 2, 1]


def perfect(dicts):
    outputs = []
    for record in dicts:
        objects = record["annotations"]
        instances = Instances((SIDE, SIDE))
        boxes = torch.tensor([o["bbox"] for o in objects]).float()
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.linspace(0.9, 0.5, len(objects))
        instances.pred_classes = torch.zeros(len(objects), dtype=torch.int64)
        points = torch.tensor([o["keypoints"] for o in objects]).float().view(-1, 3, 3)
        points[:, :, 0] += 3
        instances.pred_keypoints = points
        outputs.append({"instances": instances})
    return outputs


def test_sigmas_are_those_of_the_config(content, make_cfg):
    measured = {}
    for factor in (1, 0.01):
        cfg = make_cfg(content, "TEST.KEYPOINT_OKS_SIGMAS", [s * factor for s in SIGMAS])
        dicts = load_dataset(cfg, "kp_test", is_train=False)
        evaluators = [
            CorrdetTrainer.build_evaluator(cfg, "kp_test"),
            COCOEvaluator(
                "kp_test",
                output_dir=cfg.OUTPUT_DIR,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
                use_fast_impl=False,
            ),
        ]
        ours, theirs = [], []
        for evaluator, results in zip(evaluators, (ours, theirs), strict=True):
            evaluator.reset()
            evaluator.process(dicts, perfect(dicts))
            results.append(evaluator.evaluate()["keypoints"])
        assert ours[0]["AP"] == theirs[0]["AP"]
        measured[factor] = ours[0]["AP"]
    assert measured[1] >= 90 and measured[0.01] < 10


def named(names):
    return lambda content: content["categories"][0].update(keypoints=names)


def second(keypoints):
    return lambda content: content["annotations"][1].update(keypoints=keypoints)


class TestRefusedBeforeTraining:
    @pytest.mark.parametrize("sigmas, message", [
        ([0.1, 0.2], "TEST.KEYPOINT_OKS_SIGMAS are 2 numbers, but .*NUM_KEYPOINTS is 3"),
        ([], "TEST.KEYPOINT_OKS_SIGMAS are none, which are COCO's 17, but .* is 3"),
        ([0.1, -1, 0.2], "must be positive numbers"),
        (["a", "b", "c"], "must be positive numbers"),
    ])  # fmt: skip
    def test_sigmas(self, content, make_cfg, sigmas, message):
        with pytest.raises(ConfigError, match=message):
            make_cfg(content, "TEST.KEYPOINT_OKS_SIGMAS", sigmas)

    def test_a_detector_without_keypoints(self, content, make_cfg):
        more = ("MODEL.META_ARCHITECTURE", "CorrdetRetinaNet", "MODEL.RPN_CRITERION.COUPLINGS", ())
        with pytest.raises(ConfigError, match="MODEL.KEYPOINT_ON is True, but nothing reads it"):
            make_cfg(content, *more, "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal")

    def test_views_that_cannot_be_merged(self, content, make_cfg):
        with pytest.raises(ConfigError, match="TEST.AUG.ENABLED cannot merge keypoints"):
            make_cfg(content, "TEST.AUG.ENABLED", True)

    @pytest.mark.parametrize("change, message", [
        (lambda c: c["categories"][0].pop("keypoints"), "needs the names of its keypoints"),
        (named(NAMES[:2]), "has the 2 keypoints nose, left"),
        (named(["a", "a", "b"]), "so many different names"),
        (named(["a", "b", "c"]), "expected INPUT.RANDOM_FLIP none, or"),
        (named(["a", 2, "c"]), "expected INPUT.RANDOM_FLIP none, or"),
        (named("abc"), "needs the names of its keypoints"),
        (second([1, 2, 2]), "of 3 keypoints, got 3 numbers"),
        (second("x"), "the keypoints are not numbers"),
        (second(7), "the keypoints are not numbers"),
        (second([1, 1, 3] * 3), "none of 0, 1 and 2"),
        (second([float("nan")] * 9), "is not finite"),
    ])  # fmt: skip
    def test_data(self, content, make_cfg, change, message):
        change(content)
        with pytest.raises((AnnotationError, ConfigError), match=message):
            training_dicts(make_cfg(content))

    def test_keypoints_of_the_test_set_in_another_order(self, content, make_cfg):
        other = copy.deepcopy(content)
        other["categories"][0]["keypoints"] = NAMES[::-1]
        cfg = make_cfg(content, test=other)
        with pytest.raises(AnnotationError, match="'kp_test': expected the keypoints of 'kp_tr"):
            CorrdetTrainer(cfg)

    @pytest.mark.parametrize("pairs", [
        [("left_ear", "tail")], [("nose", "left_ear"), ("left_ear", "right_ear")], 3, ["nose"],
    ])  # fmt: skip
    def test_maps(self, content, make_cfg, pairs):
        cfg = make_cfg(content)
        MetadataCatalog.get("kp_train").keypoint_flip_map = pairs
        with pytest.raises(AnnotationError, match="expected keypoint_flip_map to be pairs"):
            training_dicts(cfg)

    def test_bad_ones_can_be_left_out(self, content, make_cfg):
        content["annotations"][1]["keypoints"] = [1, 2, 2]
        cfg = make_cfg(content, "DATASETS.SKIP_BAD_ANNOTATIONS", True)
        assert len(training_dicts(cfg)[0]["annotations"]) == 1
