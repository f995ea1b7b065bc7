"""Weights under others' names: whose they are is told by the names in the file.

``MODEL.WEIGHTS`` takes all of them as they were published.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from corrdet.engine.weights import CheckpointError

from . import detr, resnet, sparse_rcnn, torchvision_networks

# Of all images, RGB in 0..255; torchvision and timm divide by the deviation.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
KEYS = (
    f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN [{','.join(map(str, IMAGENET_MEAN))}] "
    f"MODEL.PIXEL_STD [{','.join(map(str, IMAGENET_STD))}]"
)


@dataclass(frozen=True)
class Converter:
    """What turns weights of one kind into ours.

    Attributes:
        of: whose they are, for messages.
        convert: from tensors by name to the same under our names.
        has: names that such a file has, all of them.
        is_backbone: its names are the ends of the model's.
        strides_in_3x3: its blocks want ``MODEL.RESNETS.STRIDE_IN_1X1 False``.
        takes_imagenet: its images are RGB, normalized by mean and deviation.
    """

    of: str
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    has: tuple[str, ...]
    is_backbone: bool = True
    strides_in_3x3: bool = False
    takes_imagenet: bool = True

    def remarks(self, model: nn.Module) -> Iterator[str]:
        """What the model does otherwise than these weights want it.

        Args:
            model: a detector of Detectron2 or ours, with ``pixel_mean`` and ``pixel_std``.
        """
        mean, std = (getattr(model, name, None) for name in ("pixel_mean", "pixel_std"))
        if self.takes_imagenet and isinstance(mean, Tensor) and mean.numel() == 3:
            theirs = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
            own = mean.flatten().float().cpu(), torch.as_tensor(std).flatten().float().cpu()
            is_bgr = getattr(model, "input_format", "RGB") == "BGR"
            is_close = all(torch.allclose(a, b, atol=3.0) for a, b in zip(own, theirs, strict=True))
            if is_bgr or not is_close:
                yield (
                    f"these weights want {KEYS}; here images are "
                    f"{'BGR' if is_bgr else 'RGB as far as is known'}, with the mean "
                    f"{_rounded(own[0])} and deviation {_rounded(own[1])}"
                )
        if self.strides_in_3x3 and _has_strides_in_1x1(model):
            yield "these weights want MODEL.RESNETS.STRIDE_IN_1X1 False; here strides are in 1x1"


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 2) for value in values.tolist()]


def _has_strides_in_1x1(model: nn.Module) -> bool:
    return any(
        isinstance(block, BottleneckBlock) and max(block.conv1.stride) > 1
        for block in model.modules()
    )


_NETWORKS = torchvision_networks
CONVERTERS = (
    Converter(
        "a ResNet of torchvision or timm",
        resnet.convert,
        ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"),
        strides_in_3x3=True,
    ),
    Converter(
        "a Res2Net of its authors or timm",
        resnet.convert,
        ("conv1.0.weight", "layer1.0.convs.0.weight"),
        strides_in_3x3=True,
    ),
    Converter(
        "a ResNet in a checkpoint of mmdetection",
        resnet.convert,
        ("backbone.conv1.weight", "backbone.layer1.0.conv1.weight"),
        takes_imagenet=False,  # by its own config
    ),
    Converter("torchvision's MobileNetV2", _NETWORKS.convert, ("features.1.conv.0.0.weight",)),
    Converter("torchvision's ConvNeXt", _NETWORKS.convert, ("features.1.0.layer_scale",)),
    Converter("torchvision's Swin", _NETWORKS.convert, ("features.1.0.attn.qkv.weight",)),
    Converter(
        "timm's MobileNetV2",
        _NETWORKS.convert_timm_mobilenet,
        ("conv_stem.weight", "blocks.1.0.conv_pwl.weight", "blocks.6.0.conv_pwl.weight"),
    ),
    Converter(
        "timm's ConvNeXt",
        _NETWORKS.convert_timm_convnext,
        ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    ),
    Converter(
        "a Swin of timm or its authors",
        _NETWORKS.convert_timm_swin,
        ("patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"),
    ),
    Converter(
        "the original DETR", detr.convert, ("backbone.0.body.conv1.weight",), is_backbone=False
    ),
    Converter(
        "the original Sparse R-CNN",
        sparse_rcnn.convert,
        ("head.head_series.0.norm1.weight",),
        is_backbone=False,
    ),
)


def without_common_prefix(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights without what a wrapper put before all names, such as ``module.``."""
    begins = {name.partition(".")[0] for name in weights}
    if len(begins) != 1 or not all("." in name for name in weights):
        return weights
    return {name.partition(".")[2]: value for name, value in weights.items()}


def find_converter(names: Collection[str], own: Collection[str]) -> Converter | None:
    """What the weights in a file are of; None if they are the model's, or nobody's that is known.

    Args:
        names: in the file.
        own: of the model. One of one's own may have others' names itself.
    """
    for converter in CONVERTERS:
        if all(name in names for name in converter.has):
            is_own = all(name in own for name in converter.has)
            return None if is_own else converter
    return None


def convert(converter: Converter, weights: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The weights under our names.

    Args:
        converter: from :func:`find_converter`.
        weights: by name.
        path: of the file, for messages.

    Raises:
        CheckpointError: they are of a network that is not known.
    """
    tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
    try:
        return converter.convert(tensors)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} has names of {converter.of}, but was not loaded: {error}"
        ) from error
