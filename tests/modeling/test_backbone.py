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
