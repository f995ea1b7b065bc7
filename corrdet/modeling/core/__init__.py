"""What all detectors share: the protocol, the step from a batch to its losses, and checks."""

from .detector import Detector, check_detector
from .state import load_old_state
from .training import WRITER_PERIOD, criterion_losses, gather, gather_boxes, log_agreement

__all__ = [
    "WRITER_PERIOD",
    "Detector",
    "check_detector",
    "criterion_losses",
    "gather",
    "gather_boxes",
    "load_old_state",
    "log_agreement",
]
