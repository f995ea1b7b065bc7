"""Backbones against plain loops, Detectron2's and the networks that their weights come from."""

import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone import resnet
from torch.nn import BatchNorm2d

from corrdet import add_corrdet_config
from corrdet.engine import SafeCheckpointer
from corrdet.modeling import DeformableBottleneckBlock, DeformableConv2d, Res2NetBlock
from corrdet.modeling.backbones.freezing import READ_FREEZE_AT
from tests.helpers.training import ROOT


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


def test_p6_from_p5():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/quick/Base-quick.yaml", False)
    cfg.MODEL.FPN.P6_FROM = "p5"
    backbone = build_backbone(cfg).eval()
    assert backbone.top_block.p6.in_channels == cfg.MODEL.FPN.OUT_CHANNELS == 64
    with torch.no_grad():
        outputs = backbone(torch.rand(1, 3, 128, 160))
        p6 = backbone.top_block.p6(outputs["p5"])
    torch.testing.assert_close(outputs["p6"], p6)
    assert backbone.output_shape()["p7"].stride == 128


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


def fpn_cfg(name, *options):
    """A backbone of full size, without what is trained on top."""
    cfg = get_cfg()
    add_corrdet_config(cfg)
    levels = ["res3", "res4", "res5"] if "retinanet" in name else ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.merge_from_list(list(options))
    return cfg


def randomize(module, seed=0):
    """Random statistics and offsets: those that modules start with are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if "offset" in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        elif name.endswith(("running_mean", "norm.bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif name.endswith("running_var") or value.ndim == 1 and name.endswith("weight"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
    return module.eval()


# ---- Deformable convolutions.


def plain_deformable(x, weight, offset, mask, stride, padding, dilation):
    """The convolution tap by tap: Deformable ConvNets v2, Eq. 1."""
    images, channels, height, width = x.shape
    outputs, per_group, size, _ = weight.shape
    deform_groups = mask.shape[1] // size**2
    out = x.new_zeros(images, outputs, *offset.shape[2:])

    def value(image, channel, y, x_):
        total = 0.0
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x_ // 1), int(x_ // 1) + 1):
                if 0 <= row < height and 0 <= column < width:
                    nearness = (1 - abs(y - row)) * (1 - abs(x_ - column))
                    total += float(x[image, channel, row, column]) * nearness
        return total

    for image, output, row, column in torch.cartesian_prod(
        *map(torch.arange, (images, outputs, *offset.shape[2:]))
    ).tolist():
        first = output * (channels // per_group) // outputs * per_group
        for index in range(per_group):
            channel = first + index
            group = channel * deform_groups // channels
            for tap in range(size**2):
                number = group * size**2 + tap
                dy, dx = offset[image, 2 * number : 2 * number + 2, row, column].tolist()
                y = row * stride - padding + tap // size * dilation + dy
                x_ = column * stride - padding + tap % size * dilation + dx
                out[image, output, row, column] += (
                    float(weight[output, index, tap // size, tap % size])
                    * float(mask[image, number, row, column])
                    * value(image, channel, y, x_)
                )
    return out


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 2)])
def test_a_deformable_block_is_that_of_a_plain_loop(modulated, stride, dilation):
    torch.manual_seed(0)
    block = randomize(
        DeformableBottleneckBlock(
            6,
            8,
            bottleneck_channels=4,
            stride=stride,
            dilation=dilation,
            num_groups=2,
            norm="FrozenBN",
            deform_modulated=modulated,
            deform_num_groups=2,
        )
    ).double()
    assert isinstance(block.conv2, DeformableConv2d)
    x = torch.randn(2, 6, 6, 5, dtype=torch.float64)
    inner = block.conv1(x).relu()
    predicted = block.conv2_offset(inner)
    assert predicted.shape[1] == (54 if modulated else 36)
    offset, mask = predicted[:, :36], predicted[:, 36:].sigmoid()
    if not modulated:
        mask = torch.ones_like(offset[:, ::2])
    out = plain_deformable(
        inner, block.conv2.weight.detach(), offset, mask, stride, dilation, dilation
    )
    expected = (block.conv3(block.conv2.norm(out).relu()) + block.shortcut(x)).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_a_deformable_block_takes_weights_of_detectron2s(monkeypatch, modulated):
    class Operator(Conv2d):
        """In place of Detectron2's, which are in its compiled part."""

        def __init__(self, *args, deformable_groups, **kwargs):
            super().__init__(*args, **kwargs)

        def forward(self, x, offset, mask=None):
            geometry = self.stride, self.padding, self.dilation
            return self.norm(
                torchvision.ops.deform_conv2d(x, offset, self.weight, None, *geometry, mask)
            )

    monkeypatch.setattr(resnet, "DeformConv", Operator)
    monkeypatch.setattr(resnet, "ModulatedDeformConv", Operator)
    arguments = {"bottleneck_channels": 8, "stride": 2, "norm": "FrozenBN"}
    arguments |= {"deform_modulated": modulated, "deform_num_groups": 2, "stride_in_1x1": True}
    theirs = randomize(resnet.DeformBottleneckBlock(8, 16, **arguments))
    ours = DeformableBottleneckBlock(8, 16, **arguments).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(ours(x), theirs(x))


def test_offsets_are_zero_at_first_and_learn():
    torch.manual_seed(0)
    arguments = {"bottleneck_channels": 8, "norm": "FrozenBN"}
    plain = resnet.BottleneckBlock(8, 16, **arguments)
    block = DeformableBottleneckBlock(8, 16, **arguments)
    found = block.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"]
    assert not found.unexpected_keys
    x = torch.randn(1, 8, 7, 6)
    torch.testing.assert_close(block(x), plain(x))
    # Initialized as Detectron2's convolutions are.
    spread = (2 / (8 * 9)) ** 0.5
    assert (
        0.8 * spread
        < DeformableBottleneckBlock(8, 16, **arguments).conv2.weight.std()
        < 1.2 * spread
    )
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize("modulated", [False, True])
def test_half_precision(modulated):
    torch.manual_seed(0)
    arguments = {"bottleneck_channels": 8, "norm": "FrozenBN", "deform_modulated": modulated}
    block = randomize(DeformableBottleneckBlock(8, 16, **arguments))
    x = torch.randn(1, 8, 7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(x)
    out.sum().backward()
    assert block.conv2_offset.weight.grad.abs().sum() > 0
    expected = block(x)
    assert (out - expected).abs().max() < 0.05 * expected.max()
    assert block.half()(x.half()).dtype == torch.float16
    assert block(x[:0].half()).shape == (0, 16, 7, 6)


# ---- The builders.


@pytest.mark.parametrize("network", ["deformable_resnet", "res2net"])
@pytest.mark.parametrize("retinanet", [False, True])
def test_pyramids_of_deformable_backbones(network, retinanet):
    name = f"build_{'retinanet_' if retinanet else ''}{network}_fpn_backbone"
    cfg = fpn_cfg(name, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, False, True])
    cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 26 if network == "res2net" else 64
    backbone = build_backbone(cfg)
    first = 3 if retinanet else 2
    strides = {f"p{level}": 2**level for level in range(first, first + 5)}
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == strides
    outputs = backbone(torch.rand(1, 3, 64, 96))
    for name, stride in strides.items():
        assert outputs[name].shape == (1, 16, -(-64 // stride), -(-96 // stride))
    bottom_up = backbone.bottom_up
    for stage, blocks in zip(bottom_up.stage_names, (3, 4, 6, 3), strict=True):
        modules = list(getattr(bottom_up, stage).modules())
        found = sum(isinstance(module, DeformableConv2d) for module in modules)
        per_block = 3 if network == "res2net" else 1
        assert found == (blocks * per_block if stage in ("res3", "res5") else 0)
    # As Detectron2's: MODEL.BACKBONE.FREEZE_AT is 2.
    frozen = [name for name, p in bottom_up.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith(("stem", "res2")) for name in frozen)
    assert not any(p.requires_grad for p in bottom_up.res2.parameters())
    sum(output.sum() for output in outputs.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("build_deformable_resnet_fpn_backbone", {"DEPTH": 34}, "DEPTH 34; expected one of 50"),
        ("build_res2net_fpn_backbone", {"DEPTH": 18}, "DEPTH 18; expected one of 50, 101, 152"),
        ("build_deformable_resnet_fpn_backbone", {"RES5_DILATION": 2}, "RES5_DILATION 1 only"),
        ("build_res2net_fpn_backbone", {"NUM_GROUPS": 32}, "Res2Net has no groups.* is 32"),
    ],
)
def test_networks_that_there_are_not(name, options, message):
    cfg = fpn_cfg(name)
    for key, value in options.items():
        cfg.MODEL.RESNETS[key] = value
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)


@pytest.mark.parametrize("scale", [1, 3])
def test_parts_that_there_are_not(scale):
    with pytest.raises(ValueError, match=f"got 104 channels and scale {scale}"):
        Res2NetBlock(64, 256, bottleneck_channels=104, scale=scale)


# ---- Freezing.


def build_frozen(name: str, freeze_at: int, norm: str = "BN"):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.TORCHVISION.NORM = norm
    cfg.MODEL.TORCHVISION.NETWORK = "mobilenet_v2"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    if "retinanet" in name or "ssd" in name:
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    if "res2net" in name:
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 26
    if "deformable" in name or "res2net" in name:
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [True] * 4
    elif "resnet10" in name:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return build_backbone(cfg)


def ours() -> set[str]:
    backbones = dict(iter(BACKBONE_REGISTRY))
    return {name for name, make in backbones.items() if make.__module__.startswith("corrdet.")}


def test_all_backbones_are_checked_for_frozen_random_weights():
    assert ours() <= set(READ_FREEZE_AT)
    assert set(READ_FREEZE_AT) - ours() == {
        "build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("freeze_at", [0, 1, 3])
@pytest.mark.parametrize("name", READ_FREEZE_AT)
def test_frozen_stages_have_no_gradient_and_frozen_norms(name, freeze_at):
    backbone = build_frozen(name, freeze_at).train()
    outputs = backbone(torch.rand(2, 3, 64, 64))
    sum(output.sum() for output in outputs.values()).backward()
    bottom_up = getattr(backbone, "bottom_up", backbone)
    stages = [bottom_up.stem, *(getattr(bottom_up, stage) for stage in bottom_up.stage_names)]
    assert len(stages) == 5
    for index, stage in enumerate(stages):
        is_frozen = index < freeze_at
        assert all(p.requires_grad != is_frozen for p in stage.parameters())
        assert all((p.grad is None) == is_frozen for p in stage.parameters())
        norms = [m for m in stage.modules() if isinstance(m, BatchNorm2d | FrozenBatchNorm2d)]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == is_frozen for m in norms)


# ---- Converted weights.


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_backbone.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted_into(tool, weights, cfg, folder, monkeypatch):
    """The backbone of a config with weights that went through the tool and the checkpointer."""
    torch.save(weights, folder / "in.pth")
    monkeypatch.setattr(sys, "argv", ["tool", str(folder / "in.pth"), str(folder / "out.pth")])
    tool.main()
    model = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    SafeCheckpointer(model).load(str(folder / "out.pth"))
    return model["backbone"].bottom_up.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("original", "name", "options"),
    [
        ("resnet50", "build_resnet_fpn_backbone", []),
        (
            "resnext50_32x4d",
            "build_deformable_resnet_fpn_backbone",
            ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4],
        ),
    ],
)
def test_torchvisions_weights_give_its_features(
    tool, original, name, options, tmp_path, monkeypatch, capsys
):
    torch.manual_seed(0)
    network = randomize(torchvision.models.get_model(original, weights=None))
    cfg = fpn_cfg(name, *options)
    bottom_up = converted_into(tool, network.state_dict(), cfg, tmp_path, monkeypatch)
    assert "They need INPUT.FORMAT RGB" in capsys.readouterr().out
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        features = bottom_up(images)
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for stage in range(1, 5):
            x = getattr(network, f"layer{stage}")(x)
            torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)


def res2net_weights(blocks=(3, 4, 6, 3), width=26, scale=4):
    """Random weights with the names and shapes of the published Res2Net-50 v1b, 26w4s."""
    generator = torch.Generator().manual_seed(0)
    weights = {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}

    def conv(name, outputs, inputs, size):
        spread = (2 / (inputs * size**2)) ** 0.5
        shape = outputs, inputs, size, size
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread

    def norm(name, channels):
        for key, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5)):
            weights[f"{name}.{key}"] = torch.rand(channels, generator=generator) + low
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for index, (outputs, inputs) in zip((0, 3, 6), ((32, 3), (32, 32), (64, 32)), strict=True):
        conv(f"conv1.{index}", outputs, inputs, 3)
        norm("bn1" if index == 6 else f"conv1.{index + 1}", outputs)
    inputs = 64
    for stage, count in enumerate(blocks):
        part, outputs = width * 2**stage, 256 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", part * scale, inputs, 1)
            norm(f"{name}.bn1", part * scale)
            for index in range(scale - 1):
                conv(f"{name}.convs.{index}", part, part, 3)
                norm(f"{name}.bns.{index}", part)
            conv(f"{name}.conv3", outputs, part * scale, 1)
            norm(f"{name}.bn3", outputs)
            if block == 0:
                conv(f"{name}.downsample.1", outputs, inputs, 1)
                norm(f"{name}.downsample.2", outputs)
            inputs = outputs
    return weights


def plain_res2net(weights, images, blocks=(3, 4, 6, 3)):
    """Features of the stages, from the weights under their published names."""

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x, name):
        keys = "running_mean", "running_var", "weight", "bias"
        return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))

    x = norm(conv(images, "conv1.0", 2), "conv1.1").relu()
    x = norm(conv(x, "conv1.3"), "conv1.4").relu()
    x = F.max_pool2d(norm(conv(x, "conv1.6"), "bn1").relu(), 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and block == 0 else 1
            x1, x2, x3, x4 = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu().chunk(4, dim=1)
            y1 = norm(conv(x1, f"{name}.convs.0", stride), f"{name}.bns.0").relu()
            if block > 0:
                x2 = x2 + y1
            y2 = norm(conv(x2, f"{name}.convs.1", stride), f"{name}.bns.1").relu()
            if block > 0:
                x3 = x3 + y2
            y3 = norm(conv(x3, f"{name}.convs.2", stride), f"{name}.bns.2").relu()
            if block == 0:
                x4 = F.avg_pool2d(x4, 3, stride, 1)
                x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
                x = norm(conv(x, f"{name}.downsample.1"), f"{name}.downsample.2")
            y = torch.cat([y1, y2, y3, x4], dim=1)
            x = (norm(conv(y, f"{name}.conv3"), f"{name}.bn3") + x).relu()
        yield x


@pytest.mark.slow
def test_res2nets_weights_give_its_features(tool, tmp_path, monkeypatch):
    weights = res2net_weights()
    cfg = fpn_cfg("build_res2net_fpn_backbone", "MODEL.RESNETS.WIDTH_PER_GROUP", 26)
    bottom_up = converted_into(tool, weights, cfg, tmp_path, monkeypatch)
    # Odd sizes: the pooling of shortcuts has to round up.
    images = torch.randn(1, 3, 69, 101)
    with torch.no_grad():
        features = bottom_up(images)
        for stage, expected in enumerate(plain_res2net(weights, images)):
            feature = features[f"res{stage + 2}"] / expected.std()
            torch.testing.assert_close(feature, expected / expected.std(), rtol=1e-3, atol=1e-3)


def test_nothing_but_the_classifier_is_left_out(tool):
    weights = res2net_weights()
    converted = tool.convert(weights)
    left_out = [n for n in weights if n.startswith("fc.") or n.endswith("num_batches_tracked")]
    assert len(converted) == len(weights) - len(left_out)
    cfg = fpn_cfg("build_res2net_fpn_backbone", "MODEL.RESNETS.WIDTH_PER_GROUP", 26)
    bottom_up = build_backbone(cfg).bottom_up
    assert converted.keys() == bottom_up.state_dict().keys()
    assert isinstance(bottom_up.stem.conv3.norm, FrozenBatchNorm2d)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_cannot_be_converted_is_refused(tool, tmp_path, monkeypatch):
    resnet50 = {"conv1.weight": torch.ones(1)}
    deep, parts = {"conv1.0.weight": torch.ones(1)}, {"layer1.0.convs.0.weight": torch.ones(1)}
    for weights, message in (
        ({**resnet50, **parts}, "a Res2Net with the stem of ResNet; expected"),
        (deep, "a ResNet with another stem; expected"),
        ({"features.0.weight": torch.ones(1)}, "it is no ResNet"),
        ({**resnet50, "layer1.0.se.fc1.weight": torch.ones(1)}, "'layer1.0.se.fc1.weight' is no"),
        ({**resnet50, "layer5.0.conv1.weight": torch.ones(1)}, "'layer5.0.conv1.weight' is no"),
    ):
        with pytest.raises(ValueError, match=message):
            tool.convert(weights)
    trap = tmp_path / "trap"
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Trap(trap), protocol=2))
    for name in ("code.pth", "absent.pth"):
        monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / name), str(tmp_path / "out.pth")])
        with pytest.raises(SystemExit, match="was not converted"):
            tool.main()
    assert not trap.exists() and not (tmp_path / "out.pth").exists()
