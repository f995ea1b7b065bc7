"""Meta-architectures and backbones, registered with Detectron2 by importing this package."""

from corrdet.losses.matched_predictions import centerness

from .backbones import (
    DeformableBottleneckBlock,
    DeformableConv2d,
    Res2NetBlock,
    Res2NetStem,
    TorchvisionStages,
    build_deformable_resnet_fpn_backbone,
    build_mobilenet_v2_fpn_backbone,
    build_res2net_fpn_backbone,
    build_resnet10_fpn_backbone,
    build_retinanet_deformable_resnet_fpn_backbone,
    build_retinanet_mobilenet_v2_fpn_backbone,
    build_retinanet_res2net_fpn_backbone,
    build_retinanet_resnet10_fpn_backbone,
    build_retinanet_torchvision_fpn_backbone,
    build_torchvision_fpn_backbone,
)
from .core import Detector, check_detector, load_old_state
from .dense.atss import CorrdetATSS
from .dense.box_coding import FoveaTransform
from .dense.detector import DenseDetector, DenseHead
from .dense.fcos import CorrdetFCOS
from .dense.foveabox import CorrdetFoveaBox
from .dense.paa import CorrdetPAA
from .dense.priors import square_priors
from .dense.retinanet import CorrdetRetinaNet
from .dense.score_voting import score_voting
from .deploy import (
    DenseDetectorWithTTA,
    ExportableDetector,
    build_test_time_augmentation,
    check_exportable,
    export_detector,
    trace_detector,
)
from .query import CorrdetDETR, CorrdetSparseRCNN
from .rcnn import (
    CorrdetCascadeROIHeads,
    CorrdetRCNN,
    CorrdetROIHeads,
    CorrdetRPN,
    CriterionOutputLayers,
)
from .ssd import (
    CorrdetDSSD,
    CorrdetRefineDet,
    CorrdetSSD,
    DSSDHead,
    RefineDetHead,
    SSDHead,
    build_ssd_resnet_backbone,
    build_ssd_resnet_fpn_backbone,
    default_boxes,
)
from .yolact import CorrdetYOLACT, fast_nms

__all__ = [
    "CorrdetATSS",
    "CorrdetCascadeROIHeads",
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
    "DenseDetector",
    "DenseDetectorWithTTA",
    "DenseHead",
    "Detector",
    "ExportableDetector",
    "FoveaTransform",
    "RefineDetHead",
    "Res2NetBlock",
    "Res2NetStem",
    "SSDHead",
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
    "build_ssd_resnet_backbone",
    "build_ssd_resnet_fpn_backbone",
    "build_test_time_augmentation",
    "build_torchvision_fpn_backbone",
    "centerness",
    "check_detector",
    "check_exportable",
    "default_boxes",
    "export_detector",
    "fast_nms",
    "load_old_state",
    "score_voting",
    "square_priors",
    "trace_detector",
]
