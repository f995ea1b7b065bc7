import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from corrdet import add_corrdet_config


def test_resnet10_fpn():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/quick/Base-quick.yaml", False)
    backbone = build_backbone(cfg)
    outputs = backbone(torch.rand(2, 3, 128, 160))
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128
    }  # fmt: skip
    for name, shape in shapes.items():
        assert outputs[name].shape == (2, 64, 128 // shape.stride, -(-160 // shape.stride))
    # One block a stage: stem, 4 x (2 convolutions and a shortcut where the shape changes).
    bottom_up = [m for m in backbone.bottom_up.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(bottom_up) == 1 + 4 * 2 + 4
    widths = {name: shape.channels for name, shape in backbone.bottom_up.output_shape().items()}
    assert widths == {"res3": 128, "res4": 256, "res5": 512}
    assert backbone.bottom_up.stem.conv1.out_channels == 32
    # Without normalization, little would be learned from scratch.
    assert all(isinstance(layer.norm, torch.nn.BatchNorm2d) for layer in bottom_up)
    lateral = [m for m in backbone.children() if isinstance(m, torch.nn.Conv2d)]
    assert len(lateral) == 6 and all(isinstance(m.norm, torch.nn.GroupNorm) for m in lateral)
    # DistributedDataParallel stops where a parameter takes no part.
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_resnet10_fpn_of_region_based_detectors():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/quick/Base-rcnn-digits.yaml", False)
    backbone = build_backbone(cfg)
    outputs = backbone(torch.rand(1, 3, 128, 160))
    for index, name in enumerate(("p2", "p3", "p4", "p5", "p6")):
        stride = 4 * 2**index
        assert backbone.output_shape()[name].stride == stride
        assert outputs[name].shape == (1, 64, 128 // stride, -(-160 // stride))


def ssd_cfg(name, *overrides):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file(f"configs/{name}.yaml", False)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_pyramid_with_the_levels_of_ssd():
    backbone = build_backbone(ssd_cfg("quick/ssd_baseline", "MODEL.SSD.NUM_EXTRA_LEVELS", 3))
    outputs = backbone(torch.rand(2, 3, 64, 160))
    assert list(outputs) == ["p3", "p4", "p5", "p6", "p7", "p8"]
    for index, name in enumerate(outputs):
        stride = 8 * 2**index
        assert backbone.output_shape()[name].stride == stride
        assert outputs[name].shape == (2, 64, -(-64 // stride), -(-160 // stride))
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dssd/dssd320_R50_voc", dict(res3=8, res5=16, res6=32, res7=64, res8=128, res9=256)),
        ("refinedet/refinedet320_R50_voc", dict(res3=8, res4=16, res5=32, res6=64)),
        ("quick/refinedet_baseline", dict(res3=8, res4=16, res5=32, res6=64)),
    ],
)
def test_resnet_with_the_extra_stages_of_ssd(name, expected):
    backbone = build_backbone(ssd_cfg(name))
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == expected
    with torch.no_grad():
        outputs = backbone(torch.rand(2, 3, 96, 160))
    for name, shape in shapes.items():
        size = (-(-96 // shape.stride), -(-160 // shape.stride))
        assert outputs[name].shape == (2, shape.channels, *size)
