"""ResNet and ResNeXt of torchvision, timm and mmdetection, Res2Net v1b of its authors."""

import re
from collections.abc import Mapping

from torch import Tensor

from corrdet.engine.weights import CheckpointError

BLOCK = r"layer([1-4])\.(\d+)\."
# Patterns of the names of layers, and what they become; STAGE is one more than the original's.
RESNET = [
    (r"conv1", "stem.conv1"),
    (r"bn1", "stem.conv1.norm"),
    (BLOCK + r"conv([123])", r"resSTAGE.\2.conv\3"),
    (BLOCK + r"bn([123])", r"resSTAGE.\2.conv\3.norm"),
    (BLOCK + r"downsample\.0", r"resSTAGE.\2.shortcut"),
    (BLOCK + r"downsample\.1", r"resSTAGE.\2.shortcut.norm"),
]
RES2NET = [
    (r"conv1\.0", "stem.conv1"),
    (r"conv1\.1", "stem.conv1.norm"),
    (r"conv1\.3", "stem.conv2"),
    (r"conv1\.4", "stem.conv2.norm"),
    (r"conv1\.6", "stem.conv3"),
    (r"bn1", "stem.conv3.norm"),
    (BLOCK + r"conv([13])", r"resSTAGE.\2.conv\3"),
    (BLOCK + r"bn([13])", r"resSTAGE.\2.conv\3.norm"),
    (BLOCK + r"convs\.(\d+)", r"resSTAGE.\2.convs.\3"),
    (BLOCK + r"bns\.(\d+)", r"resSTAGE.\2.convs.\3.norm"),
    # downsample.0 is the pooling.
    (BLOCK + r"downsample\.1", r"resSTAGE.\2.shortcut"),
    (BLOCK + r"downsample\.2", r"resSTAGE.\2.shortcut.norm"),
]


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters under the names of Detectron2's ``ResNet``, without the classifier.

    Args:
        weights: the original's, by name.

    Raises:
        CheckpointError: they are of another network.
    """
    prefix = "backbone."
    if any(name.startswith(f"{prefix}layer1.") for name in weights):  # mmdetection's
        weights = {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
    has_deep_stem = "conv1.0.weight" in weights
    has_parts = "layer1.0.convs.0.weight" in weights
    if has_parts != has_deep_stem:
        kind = "a Res2Net with the stem of ResNet" if has_parts else "a ResNet with another stem"
        raise CheckpointError(f"it is {kind}; expected ResNet, ResNeXt or Res2Net v1b")
    if "conv1.weight" not in weights and not has_deep_stem:
        raise CheckpointError("it has neither conv1.weight nor conv1.0.weight: it is no ResNet")
    converted = {}
    for name, value in weights.items():
        layer, _, parameter = name.rpartition(".")
        if layer == "fc" or parameter == "num_batches_tracked":
            continue
        for pattern, replacement in RES2NET if has_parts else RESNET:
            match = re.fullmatch(pattern, layer)
            if match:
                stage = str(int(match[1]) + 1) if match.groups() else ""
                new = match.expand(replacement).replace("STAGE", stage)
                converted[f"{new}.{parameter}"] = value
                break
        else:
            raise CheckpointError(f"{name!r} is no parameter of ResNet, ResNeXt or Res2Net v1b")
    return converted
