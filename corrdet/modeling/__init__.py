"""Meta-architectures registered with Detectron2."""

from .atss import CorrdetATSS
from .backbone import (
    build_deformable_resnet_fpn_backbone,
    build_res2net_fpn_backbone,
    build_resnet10_fpn_backbone,
    build_retinanet_deformable_resnet_fpn_backbone,
    build_retinanet_res2net_fpn_backbone,
    build_retinanet_resnet10_fpn_backbone,
)
from .box_transforms import FoveaTransform
from .deformable import DeformableBottleneckBlock, DeformableConv2d
from .dense_head import DenseHead, centerness
from .detr import CorrdetDETR
from .export import ExportableDetector, check_exportable, export_detector, trace_detector
from .fast_nms import fast_nms
from .fcos import CorrdetFCOS
from .foveabox import CorrdetFoveaBox
from .paa import CorrdetPAA
from .priors import default_boxes, square_priors
from .rcnn import CorrdetRCNN, CorrdetROIHeads, CriterionOutputLayers
from .refinedet import CorrdetRefineDet
from .res2net import Res2NetBlock, Res2NetStem
from .retinanet import CorrdetRetinaNet
from .rpn import CorrdetRPN
from .score_voting import score_voting
from .sparse_rcnn import CorrdetSparseRCNN
from .ssd import CorrdetDSSD, CorrdetSSD
from .ssd_backbone import build_ssd_resnet_backbone, build_ssd_resnet_fpn_backbone
from .ssd_head import DSSDHead, RefineDetHead, SSDHead
from .test_time_augmentation import DenseDetectorWithTTA
from .yolact import CorrdetYOLACT

__all__ = [
    "CorrdetATSS",
    "CorrdetDETR",
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
    "CorrdetYOLACT",
    "CriterionOutputLayers",
    "DSSDHead",
    "DeformableBottleneckBlock",
    "DeformableConv2d",
    "DenseDetectorWithTTA",
    "DenseHead",
    "ExportableDetector",
    "FoveaTransform",
    "RefineDetHead",
    "Res2NetBlock",
    "Res2NetStem",
    "SSDHead",
    "build_deformable_resnet_fpn_backbone",
    "build_res2net_fpn_backbone",
    "build_resnet10_fpn_backbone",
    "build_retinanet_deformable_resnet_fpn_backbone",
    "build_retinanet_res2net_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "build_ssd_resnet_backbone",
    "build_ssd_resnet_fpn_backbone",
    "centerness",
    "check_exportable",
    "default_boxes",
    "export_detector",
    "fast_nms",
    "score_voting",
    "square_priors",
    "trace_detector",
]
