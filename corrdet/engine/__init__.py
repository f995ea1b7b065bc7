"""Training and evaluation on top of Detectron2's engine."""

from corrdet.errors import ConfigError

from .averaging import take_average
from .checkpoint import CheckpointError, SafeCheckpointer, StrictCheckpointer
from .command import run_command, shorten_logged_errors
from .configuration import check_gpus, check_output, check_run, import_modules, load_config
from .divergence import DivergedError
from .launching import is_restarted, log_processes
from .output_folder import OutputFolder
from .stopping import TrainingStopped
from .trainer import CorrdetTrainer

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorrdetTrainer",
    "DivergedError",
    "OutputFolder",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "TrainingStopped",
    "check_gpus",
    "check_output",
    "check_run",
    "import_modules",
    "is_restarted",
    "load_config",
    "log_processes",
    "run_command",
    "shorten_logged_errors",
    "take_average",
]
