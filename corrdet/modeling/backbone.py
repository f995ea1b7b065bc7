"""Backbones that Detectron2 lacks, with feature pyramids.

ResNet-10 learns from scratch on a CPU, for the quick configs. ResNet and ResNeXt with deformable
convolutions, and Res2Net with or without, are those of the papers' largest models.
"""

from collections.abc import Mapping, Sequence

from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock

from corrdet.names import unknown_name

from .deformable import DeformableBottleneckBlock
from .res2net import Res2NetBlock, Res2NetStem

# Blocks of the stages res2 to res5 by MODEL.RESNETS.DEPTH (He et al. 2016, Table 1).
BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet-10, that is ResNet-18 with one block a stage instead of two, and a feature pyramid.

    Detectron2 has no ResNet smaller than 18. Reads ``MODEL.RESNETS.{NORM, STEM_OUT_CHANNELS,
    RES2_OUT_CHANNELS}`` and ``MODEL.FPN``; trains all of its layers.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.
    """
    return _retinanet_pyramid(cfg, resnet10(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_resnet10_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, resnet10(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_deformable_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone`` with :mod:`~.deformable`'s convolutions.

    Those of Detectron2 need its compiled part and a GPU. Parameters have the same names. Reads
    ``MODEL.RESNETS``, where ``DEFORM_ON_PER_STAGE``, ``DEFORM_MODULATED`` and ``DEFORM_NUM_GROUPS``
    say which convolutions are deformable, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN``.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ValueError: ``MODEL.RESNETS`` asks for a network that there is not.
    """
    return _retinanet_pyramid(cfg, _deformable_resnet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_deformable_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, _deformable_resnet(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_res2net_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Res2Net v1b, see :mod:`corrdet.modeling.res2net`, and a feature pyramid.

    Reads ``MODEL.RES2NET.SCALE`` and what the deformable ResNet reads, of which ``WIDTH_PER_GROUP``
    is the width of a part of the channels in res2. The strides are always in the 3x3 convolutions.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ValueError: ``MODEL.RESNETS`` asks for a network that there is not.
    """
    return _retinanet_pyramid(cfg, _res2net(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_res2net_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, _res2net(cfg, input_shape), LastLevelMaxPool())


def _deformable_resnet(cfg, input_shape: ShapeSpec) -> ResNet:
    node = cfg.MODEL.RESNETS
    common = {"num_groups": node.NUM_GROUPS, "stride_in_1x1": node.STRIDE_IN_1X1}
    deformable = {
        "block_class": DeformableBottleneckBlock,
        "deform_modulated": node.DEFORM_MODULATED,
        "deform_num_groups": node.DEFORM_NUM_GROUPS,
    }
    return _resnet(
        cfg,
        BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm=node.NORM),
        node.NUM_GROUPS * node.WIDTH_PER_GROUP,
        {"block_class": BottleneckBlock, **common},
        {**deformable, **common},
    )


def _res2net(cfg, input_shape: ShapeSpec) -> ResNet:
    node = cfg.MODEL.RESNETS
    if node.NUM_GROUPS != 1:
        raise ValueError(
            f"Res2Net has no groups, but MODEL.RESNETS.NUM_GROUPS is {node.NUM_GROUPS}"
        )
    scale = cfg.MODEL.RES2NET.SCALE
    plain = {"block_class": Res2NetBlock, "scale": scale}
    deformable = {
        "deformable": True,
        "deform_modulated": node.DEFORM_MODULATED,
        "deform_num_groups": node.DEFORM_NUM_GROUPS,
    }
    return _resnet(
        cfg,
        Res2NetStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm=node.NORM),
        scale * node.WIDTH_PER_GROUP,
        plain,
        {**plain, **deformable},
    )


def _resnet(
    cfg, stem: CNNBlockBase, bottleneck_channels: int, plain: dict, deformable: dict
) -> ResNet:
    """The network with blocks, arguments of ``ResNet.make_stage``, by DEFORM_ON_PER_STAGE.

    ``bottleneck_channels`` are those of res2.
    """
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"{cfg.MODEL.BACKBONE.NAME} has no MODEL.RESNETS.DEPTH {node.DEPTH}; expected one of "
            f"{', '.join(map(str, BLOCKS_PER_STAGE))}"
        )
    if node.RES5_DILATION != 1:
        raise ValueError(
            f"{cfg.MODEL.BACKBONE.NAME} has MODEL.RESNETS.RES5_DILATION 1 only, got "
            f"{node.RES5_DILATION}"
        )
    in_channels, stages = node.STEM_OUT_CHANNELS, []
    for index, num_blocks in enumerate(BLOCKS_PER_STAGE[node.DEPTH]):
        out_channels = node.RES2_OUT_CHANNELS * 2**index
        stages.append(
            ResNet.make_stage(
                num_blocks=num_blocks,
                stride_per_block=[1 if index == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                bottleneck_channels=bottleneck_channels * 2**index,
                norm=node.NORM,
                **(deformable if node.DEFORM_ON_PER_STAGE[index] else plain),
            )
        )
        in_channels = out_channels
    return ResNet(
        stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


def resnet10(cfg, input_shape: ShapeSpec) -> ResNet:
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
    return ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES)


def _retinanet_pyramid(cfg, bottom_up: ResNet) -> FPN:
    channels = bottom_up.output_shape()["res5"].channels
    return pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def pyramid(cfg, bottom_up: ResNet, top_block) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def feature_shapes(
    outputs: Mapping[str, ShapeSpec], names: Sequence[str], key: str
) -> list[ShapeSpec]:
    """The shapes of the features that a detector reads.

    Args:
        outputs: of the backbone, by name.
        names: of those that are read.
        key: where in the config they are, below MODEL.

    Raises:
        ValueError: the backbone has no such output.
    """
    for name in names:
        if name not in outputs:
            raise ValueError(
                f"MODEL.{key}: {unknown_name('output of the backbone', name, outputs)}"
            )
    return [outputs[name] for name in names]
