"""Meta-architectures registered with Detectron2."""

from .atss import CorrdetATSS
from .backbone import build_resnet10_fpn_backbone, build_retinanet_resnet10_fpn_backbone
from .box_transforms import FoveaTransform
from .dense_head import DenseHead, centerness
from .export import ExportableDetector, export_detector, trace_detector
from .fcos import CorrdetFCOS
from .foveabox import CorrdetFoveaBox
from .paa import CorrdetPAA
from .priors import square_priors
from .rcnn import CorrdetRCNN, CorrdetROIHeads, CriterionOutputLayers
from .retinanet import CorrdetRetinaNet
from .rpn import CorrdetRPN
from .score_voting import score_voting
from .sparse_rcnn import CorrdetSparseRCNN
from .test_time_augmentation import DenseDetectorWithTTA

__all__ = [
    "CorrdetATSS",
    "CorrdetFCOS",
    "CorrdetFoveaBox",
    "CorrdetPAA",
    "CorrdetRCNN",
    "CorrdetROIHeads",
    "CorrdetRPN",
    "CorrdetRetinaNet",
    "CorrdetSparseRCNN",
    "CriterionOutputLayers",
    "DenseDetectorWithTTA",
    "DenseHead",
    "ExportableDetector",
    "FoveaTransform",
    "build_resnet10_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "centerness",
    "export_detector",
    "score_voting",
    "square_priors",
    "trace_detector",
]
