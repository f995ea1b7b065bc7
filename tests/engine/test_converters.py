"""Weights under others' names: whose they are, and that nothing of the network is lost."""

import logging

import pytest
import torch
import torchvision
from torch import nn

from corrdet.engine import CheckpointError, SafeCheckpointer
from corrdet.engine.converters import CONVERTERS, convert, find_converter
from corrdet.modeling.backbones.torchvision_networks import TorchvisionStages

FEATURES = ["res2", "res3", "res4", "res5"]


def timm_mobilenet() -> dict[str, torch.Tensor]:
    def norm(name):
        keys = "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
        return [f"{name}.{key}" for key in keys]

    names = ["conv_stem.weight", *norm("bn1"), "conv_head.weight", *norm("bn2")]
    names += ["classifier.weight", "classifier.bias"]
    for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(count):
            begin = f"blocks.{stage}.{block}"
            layers = ("conv_pw", "conv_dw", "conv_pwl") if stage else ("conv_dw", "conv_pw")
            for number, layer in enumerate(layers, 1):
                names += [f"{begin}.{layer}.weight", *norm(f"{begin}.bn{number}")]
    return {name: torch.ones(1) for name in names}


def timm_convnext() -> dict[str, torch.Tensor]:
    layers = ["stem.0", "stem.1", "head.norm", "head.fc"]
    names = []
    for stage, count in enumerate((3, 3, 9, 3)):
        layers += [f"stages.{stage}.downsample.{i}" for i in (0, 1) if stage]
        for block in range(count):
            begin = f"stages.{stage}.blocks.{block}"
            names.append(f"{begin}.gamma")
            layers += [f"{begin}.{layer}" for layer in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")]
    names += [f"{layer}.{key}" for layer in layers for key in ("weight", "bias")]
    return {name: torch.ones(1) for name in names}


def timm_swin(by_its_authors: bool) -> dict[str, torch.Tensor]:
    layers, names = ["patch_embed.proj", "patch_embed.norm", "norm", "head"], []
    for stage, count in enumerate((2, 2, 6, 2)):
        if stage < 3 if by_its_authors else stage > 0:
            layers.append(f"layers.{stage}.downsample.norm")
            names.append(f"layers.{stage}.downsample.reduction.weight")
        for block in range(count):
            begin = f"layers.{stage}.blocks.{block}"
            parts = "norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"
            layers += [f"{begin}.{part}" for part in parts]
            names += [f"{begin}.attn.relative_position_{key}" for key in ("bias_table", "index")]
            names.append(f"{begin}.attn_mask")
    names += [f"{layer}.{key}" for layer in layers for key in ("weight", "bias")]
    return {name: torch.ones(1) for name in names}


@pytest.mark.parametrize(
    ("network", "weights", "of"),
    [
        ("mobilenet_v2", timm_mobilenet(), "timm's MobileNetV2"),
        ("convnext_tiny", timm_convnext(), "timm's ConvNeXt"),
        ("swin_t", timm_swin(False), "a Swin of timm or its authors"),
        ("swin_t", timm_swin(True), "a Swin of timm or its authors"),
    ],
)
def test_timms_names(network, weights, of):
    converter = find_converter(weights, ())
    assert converter.of == of
    own = TorchvisionStages(network, FEATURES).state_dict()
    converted = convert(converter, weights, "file")
    assert converted.keys() == {name for name in own if "_norm." not in name or "res" not in name}


def test_whose_names_they_are():
    for converter in CONVERTERS:
        weights = {name: torch.ones(1) for name in converter.has}
        assert find_converter(weights, ()) is converter
        # A model of one's own that has such names is no other's.
        assert find_converter(weights, weights.keys()) is None
    assert find_converter({"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}, ()) is None


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_prefix_of_all_names_is_left_out(prefix, tmp_path):
    original = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save({"state_dict": {prefix + n: v for n, v in original.items()}}, tmp_path / "w.pth")
    model = Detector(MEAN, STD, "RGB")
    SafeCheckpointer(model).load(str(tmp_path / "w.pth"))
    weight = model.backbone["bottom_up"].res5[-1].conv[2].weight
    assert torch.equal(weight, original["features.17.conv.2.weight"])


def test_another_network_of_torchvision():
    weights = {f"features.{i}.conv.0.0.weight": torch.ones(1) for i in range(1, 30)}
    with pytest.raises(
        CheckpointError, match="w.pth .*was not loaded: .*last layer is features.29"
    ):
        convert(find_converter(weights, ()), weights, "w.pth")


class Detector(nn.Module):
    """A backbone, and what detectors say of their images."""

    def __init__(self, mean, std, input_format):
        super().__init__()
        self.backbone = nn.ModuleDict({"bottom_up": TorchvisionStages("mobilenet_v2", FEATURES)})
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None], False)


MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    ("mean", "std", "input_format", "is_said"),
    [
        (MEAN, STD, "RGB", False),
        (MEAN[::-1], STD[::-1], "BGR", True),
        (MEAN[::-1], STD, "RGB", True),
        (MEAN, [1.0, 1.0, 1.0], "RGB", True),
    ],
)
def test_channels_in_another_order_are_a_warning(
    mean, std, input_format, is_said, tmp_path, caplog
):
    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="corrdet"):
        SafeCheckpointer(Detector(mean, std, input_format)).load(str(tmp_path / "w.pth"))
    assert "has the names of torchvision's MobileNetV2" in caplog.text
    assert ("want INPUT.FORMAT RGB MODEL.PIXEL_MEAN [123.675,116.28,103.53]" in caplog.text) == (
        is_said
    )


def test_what_is_from_where_is_a_table(tmp_path, caplog):
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 5)})
    other = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 3)}).state_dict()
    torch.save({**other, "old.weight": torch.ones(1)}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="corrdet"):
        SafeCheckpointer(model).load(str(tmp_path / "w.pth"))
    rows = [[cell.strip() for cell in line.split("|")] for line in caplog.text.splitlines()]
    assert ["", "part", "loaded", "new", "another shape", "left over", ""] in rows
    assert ["", "backbone.bias", "1", "", "", "", ""] in rows
    assert ["", "head.weight", "", "", "1", "", ""] in rows
    assert ["", "old.weight", "", "", "", "1", ""] in rows
