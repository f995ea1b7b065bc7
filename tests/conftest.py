"""What several folders of tests need: a small data set on disk, and configs to train on it."""

import os
import sys
from pathlib import Path

# Before torch starts its threads, and for the processes that tests start: the models are so small
# that threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402

from corrdet import add_corrdet_config  # noqa: E402
from corrdet.data.digits import prepare_digits  # noqa: E402
from corrdet.data.register import register_from_config  # noqa: E402
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES  # noqa: E402
from tests.helpers.browser import find_browser  # noqa: E402
from tests.helpers.training import ROOT, tiny_overrides  # noqa: E402

COUNTS = {"train": 24, "val": 8}
# What marked tests need, and whether it is here.
NEEDS = {"cuda": "a CUDA GPU", "browser": "a browser (Chromium on the PATH or in $CHROMIUM)"}
LEFT_OUT = pytest.StashKey[dict]()


def is_here(mark: str) -> bool:
    return torch.cuda.is_available() if mark == "cuda" else find_browser() is not None


def pytest_collection_modifyitems(config, items):
    """Without a GPU, tests marked cuda are left out, and counted as that, not as skipped.

    The same for those marked browser.
    """
    config.stash[LEFT_OUT] = {}
    for mark in NEEDS:
        if mark in config.option.markexpr or is_here(mark):
            continue
        without = [item for item in items if item.get_closest_marker(mark)]
        config.stash[LEFT_OUT][mark] = len(without)
        config.hook.pytest_deselected(items=without)
        left = set(without)
        items[:] = [item for item in items if item not in left]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes, which print nothing
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    # All processes collect the same tests.
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter, config):
    for mark, count in config.stash.get(LEFT_OUT, {}).items():
        if count:
            terminalreporter.write_line(f"{count} tests need {NEEDS[mark]} and were left out")


@pytest.fixture(autouse=True)
def registries_as_they_were():
    """Losses that a test registers are gone after it: others go through all there are."""
    registries = CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS
    before = [dict(registry._losses) for registry in registries]
    yield
    for registry, losses in zip(registries, before, strict=True):
        registry._losses.clear()
        registry._losses.update(losses)


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory) -> dict:
    """24 training and 8 validation images of digits, registered as one's own COCO data would be.

    Returns:
        split -> entry of DATASETS.REGISTER; the data sets are tiny_train and tiny_val.
    """
    root = prepare_digits(tmp_path_factory.mktemp("tiny") / "digits", counts=COUNTS)
    entries = {
        split: f"tiny_{split}={root}/annotations/{split}.json:{root}/{split}" for split in COUNTS
    }
    register_from_config(entries.values())
    return entries


@pytest.fixture
def tiny_cfg(tiny_digits, tmp_path):
    """The quick RetinaNet config, on the tiny data and smaller still: a step takes a moment."""
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/quick/retinanet_concordance.yaml"), False)
    cfg.merge_from_list(tiny_overrides(tiny_digits, tmp_path / "output"))
    return cfg


@pytest.fixture
def tiny_command(tiny_digits):
    """Function of an output folder and overrides: train_net.py on the tiny data, as arguments."""

    def command(output: Path, *overrides, flags=()) -> list:
        arguments = [*flags, *tiny_overrides(tiny_digits, output), *overrides]
        config = ROOT / "configs/quick/retinanet_concordance.yaml"
        return [
            sys.executable, str(ROOT / "train_net.py"),
            "--config-file", str(config), *map(str, arguments),
        ]  # fmt: skip

    return command
