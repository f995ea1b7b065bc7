"""Training and evaluation on top of Detectron2's engine."""

from .checkpoint import SafeCheckpointer
from .configuration import ConfigError, check_gpus, check_run, import_modules, load_config
from .trainer import CorrdetTrainer

__all__ = [
    "ConfigError",
    "CorrdetTrainer",
    "SafeCheckpointer",
    "check_gpus",
    "check_run",
    "import_modules",
    "load_config",
]
