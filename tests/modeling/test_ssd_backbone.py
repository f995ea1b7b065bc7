import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from corrdet import add_corrdet_config


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
