"""What all detectors share: the protocol, the step from a batch to its losses, and checks."""

from .detector import (
    Detector,
    check_detector,
    is_evaluation_only,
    num_classes_key,
)
from .state import load_old_state
from .training import WRITER_PERIOD, criterion_losses, gather, gather_boxes, log_agreement

__all__ = [
    "WRITER_PERIOD",
    "Detector",
    "check_detector",
    "criterion_losses",
    "gather",
    "gather_boxes",
    "is_evaluation_only",
    "load_old_state",
    "log_agreement",
    "num_classes_key",
]
