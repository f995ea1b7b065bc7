"""Meta-architectures registered with Detectron2."""

from .atss import CorrdetATSS
from .backbone import (
    build_resnet10_fpn_backbone,
    build_retinanet_resnet10_fpn_backbone,
    build_ssd_resnet_backbone,
    build_ssd_resnet_fpn_backbone,
)
from .box_transforms import FoveaTransform
from .dense_head import DenseHead, centerness
from .fcos import CorrdetFCOS
from .foveabox import CorrdetFoveaBox
from .paa import CorrdetPAA
from .priors import default_boxes, square_priors
from .rcnn import CorrdetRCNN, CorrdetROIHeads, CriterionOutputLayers
from .refinedet import CorrdetRefineDet
from .retinanet import CorrdetRetinaNet
from .rpn import CorrdetRPN
from .score_voting import score_voting
from .sparse_rcnn import CorrdetSparseRCNN
from .ssd import CorrdetDSSD, CorrdetSSD
from .ssd_head import DSSDHead, RefineDetHead, SSDHead

__all__ = [
    "CorrdetATSS",
    "CorrdetDSSD",
    "CorrdetFCOS",
    "CorrdetFoveaBox",
    "CorrdetPAA",
    "CorrdetRCNN",
    "CorrdetROIHeads",
    "CorrdetRPN",
    "CorrdetRefineDet",
    "CorrdetRetinaNet",
    "CorrdetSSD",
    "CorrdetSparseRCNN",
    "CriterionOutputLayers",
    "DSSDHead",
    "DenseHead",
    "FoveaTransform",
    "RefineDetHead",
    "SSDHead",
    "build_resnet10_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "build_ssd_resnet_backbone",
    "build_ssd_resnet_fpn_backbone",
    "centerness",
    "default_boxes",
    "score_voting",
    "square_priors",
]
