"""What is done with trained detectors: export, and testing on several views of an image."""

from .export import ExportableDetector, check_exportable, export_detector, trace_detector
from .test_time_augmentation import DenseDetectorWithTTA, build_test_time_augmentation

__all__ = [
    "DenseDetectorWithTTA",
    "ExportableDetector",
    "build_test_time_augmentation",
    "check_exportable",
    "export_detector",
    "trace_detector",
]
