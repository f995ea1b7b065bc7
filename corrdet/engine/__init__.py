"""Training and evaluation on top of Detectron2's engine."""

from .checkpoint import SafeCheckpointer
from .configuration import ConfigError, load_config
from .trainer import CorrdetTrainer

__all__ = ["ConfigError", "CorrdetTrainer", "SafeCheckpointer", "load_config"]
