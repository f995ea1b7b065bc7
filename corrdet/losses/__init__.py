"""Loss functions, each usable on its own in any PyTorch project, and their Criterion."""

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

__all__ = [
    "CLASSIFICATION_LOSSES",
    "COUPLINGS",
    "LOCALIZATION_LOSSES",
    "Criterion",
    "MatchedPredictions",
    "build_criterion",
    "concordance_correlation",
    "correlation_loss",
    "giou_loss",
    "pearson_correlation",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "spearman_correlation",
]
