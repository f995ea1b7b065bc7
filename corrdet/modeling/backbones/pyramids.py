"""Feature pyramids on a network of stages."""

from detectron2.modeling import Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from corrdet.config_keys import check_keys, declare
from corrdet.errors import ConfigError
from corrdet.options import Key, one_of

# The backbones that read MODEL.FPN.P6_FROM.
_READ_P6_FROM = (
    "build_retinanet_deformable_resnet_fpn_backbone",
    "build_retinanet_mobilenet_v2_fpn_backbone",
    "build_retinanet_res2net_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "build_retinanet_torchvision_fpn_backbone",
)
declare(
    "MODEL.FPN",
    P6_FROM=Key(
        "res5",
        one_of(("res5", "p5")),
        "what the levels beyond P5 are convolutions of: 'res5' (RetinaNet, FoveaBox), 'p5' (FCOS, "
        f"ATSS, PAA); read by {', '.join(_READ_P6_FROM)}, of which the deformable one is "
        "Detectron2's ResNet where no stage is deformable",
    ),
)


def check_p6(cfg) -> None:
    """
    Raises:
        ConfigError: ``MODEL.FPN.P6_FROM`` has no such value, or the backbone does not read it.
    """
    check_keys(cfg, "MODEL.FPN")
    name = cfg.MODEL.BACKBONE.NAME
    if cfg.MODEL.FPN.P6_FROM != "res5" and name not in _READ_P6_FROM:
        raise ConfigError(
            f"MODEL.FPN.P6_FROM is {cfg.MODEL.FPN.P6_FROM!r}, but {name} does not read it: "
            f"expected one of {', '.join(_READ_P6_FROM)} as MODEL.BACKBONE.NAME"
        )


def retinanet_pyramid(cfg, bottom_up: Backbone) -> FPN:
    """With the levels of dense detectors, p3 to p7, by ``MODEL.FPN``."""
    source, width = cfg.MODEL.FPN.P6_FROM, cfg.MODEL.FPN.OUT_CHANNELS
    channels = width if source == "p5" else bottom_up.output_shape()[source].channels
    return pyramid(cfg, bottom_up, LastLevelP6P7(channels, width, source))


def pyramid(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    """By ``MODEL.FPN``; ``top_block``: as of Detectron2's FPN, what makes levels beyond those."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
