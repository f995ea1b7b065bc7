"""Data for these tests, made once per run in a temporary folder."""

import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from corrdet.data.digits import prepare_digits

SMALL = {"train": 40, "val": 16}


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the digits data set; tests must not change it."""
    return prepare_digits(tmp_path_factory.mktemp("small") / "digits", counts=SMALL)


@pytest.fixture(scope="session")
def digits_dicts(digits_directory: Path) -> list[dict]:
    """Its training split in Detectron2's format, with category ids from 0."""
    from detectron2.data.datasets import load_coco_json

    dicts = load_coco_json(
        str(digits_directory / "annotations" / "train.json"), str(digits_directory / "train")
    )
    for record in dicts:
        for annotation in record["annotations"]:
            annotation["category_id"] -= 1
    return dicts


@pytest.fixture(autouse=True)
def propagating_logs():
    """Detectron2 may cut its loggers off from the root logger, where caplog listens."""
    logger = logging.getLogger("corrdet")
    propagate = logger.propagate
    logger.propagate = True
    yield
    logger.propagate = propagate


@pytest.fixture
def registered():
    """Registers lists of dicts for the time of a test."""
    names = []

    def register(dicts, classes=("a",) * 10) -> str:
        name = f"test_loader_{len(names)}"
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).thing_classes = list(classes)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
