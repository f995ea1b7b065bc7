"""Training and evaluation on top of Detectron2's engine."""

from .checkpoint import SafeCheckpointer, StrictCheckpointer
from .configuration import ConfigError, check_gpus, check_run, import_modules, load_config
from .trainer import CorrdetTrainer

__all__ = [
    "ConfigError",
    "CorrdetTrainer",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "check_gpus",
    "check_run",
    "import_modules",
    "load_config",
]
