"""Meta-architectures registered with Detectron2."""

from .atss import CorrdetATSS
from .backbone import build_resnet10_fpn_backbone, build_retinanet_resnet10_fpn_backbone
from .box_transforms import FoveaTransform
from .dense_head import DenseHead, centerness
from .detr import CorrdetDETR
from .fast_nms import fast_nms
from .fcos import CorrdetFCOS
from .foveabox import CorrdetFoveaBox
from .paa import CorrdetPAA
from .priors import square_priors
from .rcnn import CorrdetRCNN, CorrdetROIHeads, CriterionOutputLayers
from .retinanet import CorrdetRetinaNet
from .rpn import CorrdetRPN
from .score_voting import score_voting
from .sparse_rcnn import CorrdetSparseRCNN
from .yolact import CorrdetYOLACT

__all__ = [
    "CorrdetATSS",
    "CorrdetDETR",
    "CorrdetFCOS",
    "CorrdetFoveaBox",
    "CorrdetPAA",
    "CorrdetRCNN",
    "CorrdetROIHeads",
    "CorrdetRPN",
    "CorrdetRetinaNet",
    "CorrdetSparseRCNN",
    "CorrdetYOLACT",
    "CriterionOutputLayers",
    "DenseHead",
    "FoveaTransform",
    "build_resnet10_fpn_backbone",
    "build_retinanet_resnet10_fpn_backbone",
    "centerness",
    "fast_nms",
    "score_voting",
    "square_priors",
]
