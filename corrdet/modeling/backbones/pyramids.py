"""Feature pyramids on a ResNet."""

from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn


def retinanet_pyramid(cfg, bottom_up: ResNet) -> FPN:
    """With the levels of dense detectors: p3 to p7."""
    channels = bottom_up.output_shape()["res5"].channels
    return pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def pyramid(cfg, bottom_up: ResNet, top_block: nn.Module) -> FPN:
    """By ``MODEL.FPN``; ``top_block``: as of Detectron2's FPN, what makes levels beyond those."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
