"""Measures of how well scores and IoUs agree, and the Detectron2 evaluator that reports them."""

from .correlation import rank_correlation, true_positives
from .evaluator import CorrelationEvaluator

__all__ = ["CorrelationEvaluator", "rank_correlation", "true_positives"]
