"""Backbones that learn from scratch on a CPU, for the quick configs."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet-10, that is ResNet-18 with one block a stage instead of two, and a feature pyramid.

    Detectron2 has no ResNet smaller than 18. Reads ``MODEL.RESNETS.{NORM, STEM_OUT_CHANNELS,
    RES2_OUT_CHANNELS}`` and ``MODEL.FPN``; trains all of its layers.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.
    """
    bottom_up, channels = _resnet10(cfg, input_shape)
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return _pyramid(cfg, _resnet10(cfg, input_shape)[0], LastLevelMaxPool())


def _resnet10(cfg, input_shape: ShapeSpec) -> tuple[ResNet, int]:
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
    return ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES), channels


def _pyramid(cfg, bottom_up: ResNet, top_block) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
