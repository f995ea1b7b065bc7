"""Backbones of the papers' largest models, with feature pyramids.

ResNet and ResNeXt with deformable convolutions, and Res2Net with or without.
"""

from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BottleneckBlock

from corrdet.config_keys import check_keys, declare
from corrdet.errors import ConfigError
from corrdet.options import Key, at_least, default_of

from .deformable import DeformableBottleneckBlock
from .pyramids import pyramid, retinanet_pyramid
from .res2net import Res2NetBlock, Res2NetStem

# Blocks of the stages res2 to res5 by MODEL.RESNETS.DEPTH (He et al. 2016, Table 1).
BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

declare(
    "MODEL.RES2NET",
    "Res2Net (Gao et al. 2021), beside MODEL.RESNETS",
    SCALE=Key(
        default_of(Res2NetBlock, "scale"),
        at_least(1),
        "parts of a block's channels, each MODEL.RESNETS.WIDTH_PER_GROUP wide in res2; '26w4s' has "
        "4 of 26",
    ),
)


@BACKBONE_REGISTRY.register()
def build_retinanet_deformable_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone`` with :mod:`~.deformable`'s convolutions.

    Those of Detectron2 need its compiled part and a GPU. Parameters have the same names. Reads
    ``MODEL.RESNETS``, where ``DEFORM_ON_PER_STAGE``, ``DEFORM_MODULATED`` and ``DEFORM_NUM_GROUPS``
    say which convolutions are deformable, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN``.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ConfigError: ``MODEL.RESNETS`` asks for a network that there is not.
    """
    return retinanet_pyramid(cfg, _deformable_resnet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_deformable_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, _deformable_resnet(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_res2net_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """Res2Net v1b, see :mod:`~.res2net`, and a feature pyramid.

    Reads ``MODEL.RES2NET.SCALE`` and what the deformable ResNet reads, of which ``WIDTH_PER_GROUP``
    is the width of a part of the channels in res2. The strides are always in the 3x3 convolutions.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ConfigError: ``MODEL.RESNETS`` asks for a network that there is not.
    """
    return retinanet_pyramid(cfg, _res2net(cfg, input_shape))


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
        raise ConfigError(
            f"Res2Net has no groups, but MODEL.RESNETS.NUM_GROUPS is {node.NUM_GROUPS}"
        )
    check_keys(cfg, "MODEL.RES2NET")
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
        raise ConfigError(
            f"{cfg.MODEL.BACKBONE.NAME} has no MODEL.RESNETS.DEPTH {node.DEPTH}; expected one of "
            f"{', '.join(map(str, BLOCKS_PER_STAGE))}"
        )
    if node.RES5_DILATION != 1:
        raise ConfigError(
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
