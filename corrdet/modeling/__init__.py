"""Meta-architectures registered with Detectron2."""

from .backbone import build_retinanet_resnet10_fpn_backbone
from .retinanet import CorrdetRetinaNet

__all__ = ["CorrdetRetinaNet", "build_retinanet_resnet10_fpn_backbone"]
