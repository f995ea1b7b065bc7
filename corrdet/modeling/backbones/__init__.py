"""Backbones that Detectron2 lacks."""

from .builders import (
    build_deformable_resnet_fpn_backbone,
    build_res2net_fpn_backbone,
    build_retinanet_deformable_resnet_fpn_backbone,
    build_retinanet_res2net_fpn_backbone,
)
from .deformable import DeformableBottleneckBlock, DeformableConv2d
from .res2net import Res2NetBlock, Res2NetStem
from .resnet10 import build_resnet10_fpn_backbone, build_retinanet_resnet10_fpn_backbone
from .torchvision_networks import (
    TorchvisionStages,
    build_mobilenet_v2_fpn_backbone,
    build_retinanet_mobilenet_v2_fpn_backbone,
    build_retinanet_torchvision_fpn_backbone,
    build_torchvision_fpn_backbone,
)

__all__ = [
    "DeformableBottleneckBlock",
    "DeformableConv2d",
    "Res2NetBlock",
    "Res2NetStem",
    "TorchvisionStages",
    "build_deformable_resnet_fpn_backbone",
    "build_mobilenet_v2_fpn_backbone",
    "build_res2net_fpn_backbone",
    "build_resnet10_fpn_backbone",
    "build_retinanet_deformable_resnet_fpn_backbone",
    "build_retinanet_mobilenet_v2_fpn_backbone",
    "build_retinanet_res2net_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "build_retinanet_torchvision_fpn_backbone",
    "build_torchvision_fpn_backbone",
]
