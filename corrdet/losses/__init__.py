"""Loss functions, each usable on its own in any PyTorch project, and their Criterion."""

from .alrp import alrp_loss
from .average_precision import ap_loss
from .correlation import (
    concordance_correlation,
    correlation_loss,
    pearson_correlation,
    spearman_correlation,
)
from .criterion import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    Criterion,
    build_criterion,
)
from .focal import sigmoid_focal_loss
from .localization import giou_loss, smooth_l1_loss
from .matched_predictions import MatchedPredictions
from .pairwise_error import ape_loss, pairwise_error_loss
from .rank_sort import rank_sort_loss

__all__ = [
    "CLASSIFICATION_LOSSES",
    "COUPLINGS",
    "LOCALIZATION_LOSSES",
    "Criterion",
    "MatchedPredictions",
    "alrp_loss",
    "ap_loss",
    "ape_loss",
    "build_criterion",
    "concordance_correlation",
    "correlation_loss",
    "giou_loss",
    "pairwise_error_loss",
    "pearson_correlation",
    "rank_sort_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "spearman_correlation",
]
