"""The losses are for any PyTorch project: nothing else is loaded with them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("detectron2", "fvcore", "torchvision", "scipy", "matplotlib", "sklearn", "pycocotools")


@pytest.mark.slow
def test_importing_the_losses_loads_pytorch_alone():
    program = f"import sys, corrdet.losses; print([n for n in {HEAVY} if n in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_module_of_the_package_is_loaded():
    """So that a new loss needs no line anywhere else."""
    program = """import pkgutil, sys, corrdet.losses
names = [module.name for module in pkgutil.iter_modules(corrdet.losses.__path__)]
print([name for name in names if f"corrdet.losses.{name}" not in sys.modules])"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
