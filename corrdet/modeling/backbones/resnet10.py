"""ResNet-10, which learns from scratch on a CPU, for the quick configs."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock

from .pyramids import pyramid, retinanet_pyramid


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet-10, that is ResNet-18 with one block a stage instead of two, and a feature pyramid.

    Detectron2 has no ResNet smaller than 18. Reads ``MODEL.RESNETS.{NORM, STEM_OUT_CHANNELS,
    RES2_OUT_CHANNELS}``, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN``.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.
    """
    return retinanet_pyramid(cfg, resnet10(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, resnet10(cfg, input_shape), LastLevelMaxPool())


def resnet10(cfg, input_shape: ShapeSpec) -> ResNet:
    """The network without a pyramid; its outputs are ``MODEL.FPN.IN_FEATURES``."""
    node = cfg.MODEL.RESNETS
    channels = node.STEM_OUT_CHANNELS
    stem = BasicStem(input_shape.channels, channels, norm=node.NORM)
    stages = []
    for index in range(4):
        out_channels = node.RES2_OUT_CHANNELS * 2**index
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                1,
                stride_per_block=[1 if index == 0 else 2],
                in_channels=channels,
                out_channels=out_channels,
                norm=node.NORM,
            )
        )
        channels = out_channels
    return ResNet(
        stem,
        stages,
        out_features=cfg.MODEL.FPN.IN_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
