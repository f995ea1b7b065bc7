"""Pictures of the training are drawn with OpenCV; without it that is said before training."""

import os
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import DefaultPredictor
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer

from corrdet.data import CorrdetDatasetMapper
from corrdet.engine import ConfigError, CorrdetTrainer, check_run, load_config
from tests.helpers.training import ROOT, tiny_overrides

NAME = "ground truth (top), detections (bottom)"


def train(cfg) -> dict:
    """Iteration -> (name, picture) of what was drawn; the state of the model is in the folder."""
    drawn = {}

    class Trainer(CorrdetTrainer):
        def after_step(self):
            super().after_step()
            for name, picture, iteration in self.storage._vis_data:
                drawn[iteration] = (name, picture)

    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return drawn


def weights(cfg) -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
def test_objects_and_detections_are_drawn_and_change_nothing(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    assert train(tiny_cfg) == {}
    plain = weights(tiny_cfg)
    tiny_cfg.VIS_PERIOD = 2
    drawn = train(tiny_cfg)
    assert drawn.keys() == {0, 2}
    name, picture = drawn[0]
    top, bottom = np.split(picture, 2, axis=1)
    assert name == NAME and picture.shape[0] == 3 and picture.dtype == np.uint8
    assert (top != bottom).any()
    assert all(torch.equal(value, weights(tiny_cfg)[key]) for key, value in plain.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolact_baseline", "sparse_rcnn_baseline", "mask_rcnn_baseline"])
def test_every_family_is_drawn(name, tiny_digits, tmp_path):
    overrides = [
        *tiny_overrides(tiny_digits, tmp_path),
        "INPUT.MIN_SIZE_TRAIN", (136,),
        "MODEL.FPN.OUT_CHANNELS", 64,
        "DATASETS.TEST", (),
        "VIS_PERIOD", 1,
        "SOLVER.MAX_ITER", 2,
    ]  # fmt: skip
    path = str(ROOT / f"configs/quick/{name}.yaml")
    drawn = train(load_config(Namespace(config_file=path, opts=[*map(str, overrides)])))
    # Detectron2's R-CNN draws its proposals, and its masks, itself.
    assert (drawn[0][0] == NAME) == (name != "mask_rcnn_baseline")


def test_pictures_without_opencv_are_refused(tiny_cfg, monkeypatch):
    tiny_cfg.VIS_PERIOD = 2
    check_run(tiny_cfg)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="^VIS_PERIOD is 2, but .* opencv-python-headless, or VI"):
        check_run(tiny_cfg)
    tiny_cfg.VIS_PERIOD = 0
    check_run(tiny_cfg)


def test_batches_of_another_format_are_not_drawn(tiny_cfg, caplog):
    class Trainer(CorrdetTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return ((batch, 1) for batch in build_detection_train_loader(cfg))

        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.register_forward_pre_hook(lambda _, args: (args[0][0],))
            return model

    tiny_cfg.DATASETS.TEST, tiny_cfg.VIS_PERIOD, tiny_cfg.SOLVER.MAX_ITER = (), 1, 2
    os.makedirs(tiny_cfg.OUTPUT_DIR)
    trainer = Trainer(tiny_cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert caplog.text.count("batches of another format than Detectron2's are not drawn") == 1


class TestDetectron2sTools:
    """What Detectron2's visualize_data.py and demo.py do, with our mapper and detectors."""

    def test_mapped_images_are_drawn(self, tiny_cfg):
        tiny_cfg.MODEL.MASK_ON = True
        metadata = MetadataCatalog.get("tiny_train")
        record = DatasetCatalog.get("tiny_train")[0]
        mapped = CorrdetDatasetMapper(tiny_cfg, is_train=True)(record)
        image = mapped["image"].permute(1, 2, 0).numpy()
        image = convert_image_to_rgb(image, tiny_cfg.INPUT.FORMAT)
        fields = mapped["instances"].get_fields()
        names = [metadata.thing_classes[c] for c in fields["gt_classes"]]
        drawn = Visualizer(image, metadata=metadata).overlay_instances(
            labels=names, boxes=fields["gt_boxes"], masks=fields["gt_masks"]
        )
        assert drawn.get_image().shape == image.shape and (drawn.get_image() != image).any()
        pixels = np.zeros((record["height"], record["width"], 3), dtype=np.uint8)
        assert Visualizer(pixels, metadata).draw_dataset_dict(record).get_image().any()

    def test_detections_are_drawn(self, tiny_cfg):
        tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        image = np.zeros((96, 128, 3), dtype=np.uint8)
        found = DefaultPredictor(tiny_cfg)(image)["instances"]
        metadata = MetadataCatalog.get("tiny_val")
        drawn = Visualizer(image, metadata).draw_instance_predictions(found.to("cpu"))
        assert drawn.get_image().any()

    def test_images_and_boxes_are_rotated(self, tiny_cfg):
        record = DatasetCatalog.get("tiny_train")[0]
        rotate = [T.RandomRotation([90, 90])]
        for kind in (CorrdetDatasetMapper, DatasetMapper):
            mapped = kind(tiny_cfg, is_train=True, augmentations=rotate)(record)
            height, width = mapped["image"].shape[1:]
            assert (width, height) == (record["height"], record["width"])
            boxes = mapped["instances"].gt_boxes.tensor
            x, y, w, h = record["annotations"][0]["bbox"]
            expected = torch.tensor([y, record["width"] - x - w, y + h, record["width"] - x])
            torch.testing.assert_close(boxes[0], expected.float(), atol=1.5, rtol=0)
