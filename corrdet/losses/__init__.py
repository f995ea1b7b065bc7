"""Loss functions, each usable on its own in any PyTorch project, and their Criterion.

A module of this package registers its losses when it is imported, and all are imported here: a new
loss is a new module. The names below are those that users of the package can rely on, hence a list.
"""

import pkgutil
from importlib import import_module

from .alrp import alrp_loss
from .association import association_loss
from .average_precision import ap_loss
from .balanced_l1 import balanced_l1_loss
from .box_iou import ciou_loss, diou_loss, giou_loss, iou_loss
from .correlation import (
    concordance_correlation,
    correlation_loss,
    pearson_correlation,
    spearman_correlation,
)
from .correlation_coupling import grouped_correlation_loss
from .criterion import Criterion
from .distributional_ranking import dr_loss
from .focal import quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from .from_config import build_criterion
from .gradient_harmonizing import ghm_c_loss, ghm_r_loss
from .harmonic import (
    harmonic_factors,
    harmonic_iou_loss,
    harmonic_loss,
    task_contrastive_loss,
)
from .ia_bce import ia_bce_loss
from .iou_balanced import iou_balanced_smooth_l1_loss, iou_balanced_weights
from .mal import mal_loss
from .matched_predictions import MatchedPredictions
from .pairwise_error import ape_loss, pairwise_error_loss
from .position_supervised import position_supervised_loss, position_targets
from .rank_sort import rank_sort_loss
from .registry import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from .smooth_l1 import smooth_l1_loss
from .task_aligned import task_aligned_loss, task_alignment
from .weight import Weight

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CLASSIFICATION_LOSSES",
    "COUPLINGS",
    "LOCALIZATION_LOSSES",
    "Criterion",
    "MatchedPredictions",
    "Weight",
    "alrp_loss",
    "ap_loss",
    "ape_loss",
    "association_loss",
    "balanced_l1_loss",
    "build_criterion",
    "ciou_loss",
    "concordance_correlation",
    "correlation_loss",
    "diou_loss",
    "dr_loss",
    "ghm_c_loss",
    "ghm_r_loss",
    "giou_loss",
    "grouped_correlation_loss",
    "harmonic_factors",
    "harmonic_iou_loss",
    "harmonic_loss",
    "ia_bce_loss",
    "iou_balanced_smooth_l1_loss",
    "iou_balanced_weights",
    "iou_loss",
    "mal_loss",
    "pairwise_error_loss",
    "pearson_correlation",
    "position_supervised_loss",
    "position_targets",
    "quality_focal_loss",
    "rank_sort_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "spearman_correlation",
    "task_aligned_loss",
    "task_alignment",
    "task_contrastive_loss",
    "varifocal_loss",
]
