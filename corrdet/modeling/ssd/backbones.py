"""Backbones of SSD and its kin: more levels than a ResNet or its feature pyramid has."""

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from torch import Tensor, nn

from ..backbones.pyramids import pyramid
from ..backbones.resnet10 import resnet10
from .heads import normed_conv


@BACKBONE_REGISTRY.register()
def build_ssd_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """A feature pyramid with as many levels as SSD wants, where RetinaNet's has two extra ones.

    Reads ``MODEL.SSD.NUM_EXTRA_LEVELS`` beside what Detectron2's reads. ``MODEL.RESNETS.DEPTH 10``
    is the ResNet of :func:`build_retinanet_resnet10_fpn_backbone`.

    Returns:
        backbone with the outputs p3, p4, ..., strides 8, 16, ...
    """
    levels = ExtraLevels(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.SSD.NUM_EXTRA_LEVELS)
    return pyramid(cfg, _resnet(cfg, input_shape), levels)


class ExtraLevels(nn.Module):
    """More levels on top of a feature pyramid, each a convolution of stride 2."""

    in_feature = "p5"

    def __init__(self, channels: int, num_levels: int):
        super().__init__()
        self.num_levels = num_levels
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
            for _ in range(num_levels)
        )
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, feature: Tensor) -> list[Tensor]:
        """(N, channels, H, W), the last one of the pyramid -> each of the extra levels."""
        levels = []
        for conv in self.convs:
            feature = conv(F.relu(feature))
            levels.append(feature)
        return levels


@BACKBONE_REGISTRY.register()
def build_ssd_resnet_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """A ResNet with extra stages, without a feature pyramid: DSSD and RefineDet have their own.

    Reads ``MODEL.RESNETS`` and ``MODEL.SSD.{NUM_EXTRA_LEVELS, EXTRA_CHANNELS, NORM}``. With
    ``MODEL.RESNETS.RES5_DILATION 2`` res5 has stride 16, as in DSSD.

    Returns:
        backbone with the outputs of the ResNet, and res6, res7, ...
    """
    node = cfg.MODEL.SSD
    return ExtendedResNet(
        _resnet(cfg, input_shape), node.NUM_EXTRA_LEVELS, node.EXTRA_CHANNELS, node.NORM
    )


class ExtendedResNet(Backbone):
    """A ResNet and, as in SSD (Fig. 2), pairs of convolutions after it that halve its size."""

    def __init__(self, bottom_up: ResNet, num_extra: int, channels: int, norm: str):
        """
        Args:
            bottom_up: whose outputs, res5 among them, this has too.
            num_extra: stages after it, named res6, res7, ...
            channels: of the output of each; half of them in between.
            norm: of the convolutions.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self._shapes = dict(bottom_up.output_shape())
        self.extra_stages = nn.ModuleDict()
        last = self._shapes["res5"]
        for index in range(num_extra):
            name = f"res{6 + index}"
            self.extra_stages[name] = nn.Sequential(
                normed_conv(last.channels, channels // 2, norm, kernel_size=1, activation=F.relu),
                normed_conv(channels // 2, channels, norm, stride=2, activation=F.relu),
            )
            last = self._shapes[name] = ShapeSpec(channels=channels, stride=2 * last.stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> features by name."""
        outputs = self.bottom_up(images)
        feature = outputs["res5"]
        for name, stage in self.extra_stages.items():
            feature = outputs[name] = stage(feature)
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return self._shapes


def _resnet(cfg, input_shape: ShapeSpec) -> ResNet:
    if cfg.MODEL.RESNETS.DEPTH == 10:
        return resnet10(cfg, input_shape)
    return build_resnet_backbone(cfg, input_shape)
