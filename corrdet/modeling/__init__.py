"""Meta-architectures registered with Detectron2."""

from .retinanet import CorrdetRetinaNet

__all__ = ["CorrdetRetinaNet"]
