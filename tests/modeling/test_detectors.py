"""What the rest of corrdet asks of every detector, and a detector without a config."""

from argparse import Namespace
from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from corrdet.config_keys import SECTIONS
from corrdet.engine import ConfigError, load_config
from corrdet.losses import Criterion
from corrdet.matching import atss_matching
from corrdet.modeling import DenseDetector, DenseHead, Detector, square_priors
from corrdet.modeling.core.config_checks import default_config
from corrdet.modeling.core.training import BatchPositives
from corrdet.modeling.dense.detector import MatchImages
from corrdet.modeling.dense.inference import Inference
from corrdet.names import config_value
from tests.helpers.detectors import batch, is_sound, step
from tests.helpers.training import ROOT

NAMES = sorted(name for name, _ in META_ARCH_REGISTRY if name.startswith("Corrdet"))


@pytest.mark.parametrize("name", NAMES)
def test_every_detector_tells_what_is_asked_of_it(name):
    assert len(NAMES) >= 12
    detector, cfg = META_ARCH_REGISTRY.get(name), default_config()
    assert issubclass(detector, Detector)
    assert isinstance(config_value(cfg, detector.num_classes_key), int)
    for section in detector.sections:
        assert SECTIONS[section].keys() <= config_value(cfg, section).keys()
    assert "MODEL.CRITERION" in detector.criterion_keys(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_key_is_checked(name):
    detector = META_ARCH_REGISTRY.get(name)
    for section in detector.sections:
        for key in SECTIONS[section].values():
            assert not key.range.holds(object()) or key.range.expected == "any value"
            assert key.line and key.range.holds(key.default)


@pytest.mark.parametrize(
    "config, overrides",
    [
        ("retinanet_concordance", ()),
        ("fcos_baseline", ()),
        ("ssd_baseline", ()),
        ("refinedet_baseline", ()),
        ("yolact_baseline", ()),
        ("sparse_rcnn_baseline", ()),
        ("faster_rcnn_baseline", ("MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN")),
    ],
)
def test_criterions_are_built_once(config, overrides, monkeypatch):
    path = str(ROOT / f"configs/quick/{config}.yaml")
    cfg = load_config(Namespace(config_file=path, opts=list(overrides)))
    built = []
    construct = Criterion.__init__
    monkeypatch.setattr(
        Criterion, "__init__", lambda self, *a, **k: built.append(self) or construct(self, *a, **k)
    )
    found = [m for m in build_model(cfg).modules() if isinstance(m, Criterion)]
    assert len(built) == len(found) > 0


def test_an_unknown_quality_or_unread_losses_name_the_key():
    path = str(ROOT / "configs/quick/faster_rcnn_baseline.yaml")
    overrides = ["MODEL.RPN_CRITERION.COUPLINGS", ("correlation",)]
    with pytest.raises(ConfigError, match="RPN_CRITERION.COUPLINGS .* nothing reads it"):
        load_config(Namespace(config_file=path, opts=overrides))
    load_config(
        Namespace(
            config_file=path, opts=[*overrides, "MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN"]
        )
    )


class Stride8(Backbone):
    """A backbone of one convolution a level."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images):
        first = self.first(images).relu()
        return {"a": first, "b": self.second(first)}

    def output_shape(self):
        return {"a": ShapeSpec(channels=8, stride=8), "b": ShapeSpec(channels=8, stride=16)}


def test_a_detector_is_put_together_without_a_config():
    torch.manual_seed(0)
    backbone = Stride8()
    model = DenseDetector(
        backbone=backbone,
        head=DenseHead(
            input_shape=list(backbone.output_shape().values()), num_classes=10, conv_dims=[8]
        ),
        head_in_features=["a", "b"],
        anchor_generator=square_priors([8, 16], [32, 64]),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        matcher=MatchImages(partial(atss_matching, topk=4), num_classes=10),
        num_classes=10,
        criterion=Criterion("sigmoid_focal", "giou", ["correlation"]),
        normalizer=BatchPositives(),
        inference=Inference(score_threshold=0.0, max_detections=7),
        pixel_mean=[100.0, 100.0, 100.0],
        pixel_std=[50.0, 50.0, 50.0],
    )
    images = batch()
    losses = step(model, images)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_correlation"}
    assert is_sound(model, losses)
    with torch.no_grad():
        outputs = model.eval()(images)
    assert [output.keys() for output in outputs] == [{"instances", "positives"}] * 2
    assert 0 < len(outputs[0]["instances"]) <= 7
    with pytest.raises(ValueError, match="training needs the ground truth of every image"):
        model.train()([{"image": images[0]["image"]}])
