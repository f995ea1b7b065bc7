"""Training and evaluation on top of Detectron2's engine."""

from corrdet.errors import ConfigError

from .checkpoint import CheckpointError, SafeCheckpointer, StrictCheckpointer
from .command import run_command, shorten_logged_errors
from .configuration import check_gpus, check_output, check_run, import_modules, load_config
from .trainer import CorrdetTrainer, DivergedError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorrdetTrainer",
    "DivergedError",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "check_gpus",
    "check_output",
    "check_run",
    "import_modules",
    "load_config",
    "run_command",
    "shorten_logged_errors",
]
