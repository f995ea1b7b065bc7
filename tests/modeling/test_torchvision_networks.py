"""torchvision's networks as backbones: their features are torchvision's, on the same image."""

import hashlib
import os

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from sklearn.datasets import load_sample_image
from torchvision.models import MobileNet_V2_Weights
from torchvision.transforms.functional import normalize, to_tensor

from corrdet import add_corrdet_config
from corrdet.engine import SafeCheckpointer
from corrdet.engine.converters import convert, find_converter
from corrdet.engine.torchvision_weights import torchvision_weights
from corrdet.errors import ConfigError
from corrdet.modeling.backbones.torchvision_networks import NETWORKS, STAGES, TorchvisionStages

FEATURES = ["res2", "res3", "res4", "res5"]


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.add_(noise if "running_var" in name else 0.1 * (noise - 0.5))
    return module.eval()


def features_of(layers, images):
    """What each of torchvision's layers gives."""
    outputs = [images]
    for layer in layers:
        outputs.append(layer(outputs[-1]))
    return outputs[1:]


@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_tiny", "swin_t"])
def test_features_are_torchvisions(name):
    original = randomized(getattr(torchvision.models, name)(weights=None))
    weights = original.state_dict()
    stages = TorchvisionStages(name, FEATURES).eval()
    converter = find_converter(weights, ())
    result = stages.load_state_dict(convert(converter, weights, "file"), strict=False)
    assert not result.unexpected_keys
    # Of FrozenBN there are no counters; the norms of outputs are the detectors'.
    assert all(key.startswith("res") and "_norm." in key for key in result.missing_keys)
    images = torch.randn(2, 3, 64, 96)
    begins, channels = NETWORKS[name]
    with torch.no_grad():
        expected = features_of(original.features, images)
        found, features = {}, images
        for stage, behind in zip(STAGES, begins[1:], strict=True):
            features = getattr(stages, stage)(features)
            torch.testing.assert_close(features, expected[behind - 1], rtol=1e-5, atol=1e-5)
            found[stage] = expected[behind - 1]
        outputs = stages(images)
    for feature, width in zip(FEATURES, channels, strict=True):
        shape = stages.output_shape()[feature]
        size = 64 // shape.stride, 96 // shape.stride
        assert shape.channels == width and outputs[feature].shape == (2, width, *size)
        if name == "mobilenet_v2":
            torch.testing.assert_close(outputs[feature], found[feature], rtol=1e-5, atol=1e-5)


def mobilenet_cfg(name="build_retinanet_mobilenet_v2_fpn_backbone", *options):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/quick/Base-quick.yaml", False)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.META_ARCHITECTURE = "CorrdetATSS"
    cfg.MODEL.CRITERION.LOCALIZATION = "giou"
    cfg.merge_from_list(list(options))
    return cfg


def test_pyramids():
    images = torch.rand(1, 3, 128, 160)
    dense = build_backbone(mobilenet_cfg())
    assert {n: tuple(x.shape[1:]) for n, x in dense(images).items()} == {
        "p3": (64, 16, 20), "p4": (64, 8, 10), "p5": (64, 4, 5), "p6": (64, 2, 3), "p7": (64, 1, 2)
    }  # fmt: skip
    options = ("MODEL.FPN.IN_FEATURES", FEATURES)
    regions = build_backbone(mobilenet_cfg("build_mobilenet_v2_fpn_backbone", *options))
    assert [tuple(x.shape[2:]) for x in regions(images).values()] == [
        (32, 40), (16, 20), (8, 10), (4, 5), (2, 3)
    ]  # fmt: skip


def test_norms_and_freezing():
    stages = TorchvisionStages("mobilenet_v2", FEATURES, norm="BN", freeze_at=2)
    for index, name in enumerate(STAGES):
        stage = getattr(stages, name)
        is_frozen = index < 2
        has_norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in stage.modules())
        assert has_norms != is_frozen
        assert all(p.requires_grad != is_frozen for p in stage.parameters())
    frozen = TorchvisionStages("mobilenet_v2", FEATURES)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())


def test_other_channels_are_refused():
    cfg = mobilenet_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0], [1.0]
    with pytest.raises(ConfigError, match="takes images of 3 channels, but MODEL.PIXEL_MEAN has 1"):
        build_backbone(cfg)


def compare_on_a_photograph(model, original):
    """The photograph goes through the detector's own normalization and through torchvision's."""
    pixels = load_sample_image("china.jpg")[:256, :320]
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    preset = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    expected_input = normalize(to_tensor(pixels.copy()), preset.mean, preset.std)[None]
    with torch.no_grad():
        own_input = model.eval().predict([{"image": image}])[0].tensor
        torch.testing.assert_close(own_input, expected_input, rtol=0, atol=1e-5)
        features = model.backbone.bottom_up(own_input)
        expected = features_of(original.eval().features, expected_input)
    for name, layer in (("res3", 6), ("res4", 13), ("res5", 17)):
        scale = expected[layer].abs().max()
        torch.testing.assert_close(
            features[name] / scale, expected[layer] / scale, rtol=0, atol=1e-5
        )


def test_a_photograph_has_torchvisions_features_in_the_detector(tmp_path):
    original = randomized(torchvision.models.mobilenet_v2(weights=None))
    torch.save(original.state_dict(), tmp_path / "mobilenet.pth")
    model = build_model(mobilenet_cfg())
    SafeCheckpointer(model).load(str(tmp_path / "mobilenet.pth"))
    compare_on_a_photograph(model, original)


@pytest.mark.slow
def test_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = torchvision_weights("torchvision://mobilenet_v2")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
    assert os.path.getsize(path) == 14_212_972
    original = torchvision.models.mobilenet_v2(weights=None)
    original.load_state_dict(torch.load(path, weights_only=True))
    model = build_model(mobilenet_cfg())
    SafeCheckpointer(model).load("torchvision://mobilenet_v2")
    compare_on_a_photograph(model, original)
