import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from corrdet.data import digits
from corrdet.data.digits import BACKGROUND_COLUMNS, CLASSES, prepare_digits, stroke_sources


def load(directory: Path, split: str) -> dict:
    return json.loads((directory / "annotations" / f"{split}.json").read_text())


def masks_of(dataset: dict) -> list[np.ndarray]:
    return [mask_util.decode(annotation["segmentation"]) for annotation in dataset["annotations"]]


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_tight_around_the_masks(digits_directory, split):
    dataset = load(digits_directory, split)
    assert len(dataset["annotations"]) > len(dataset["images"])
    for annotation, mask in zip(dataset["annotations"], masks_of(dataset), strict=True):
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_masks_of_an_image_do_not_overlap(digits_directory):
    dataset = load(digits_directory, "train")
    sums = {image["id"]: np.zeros((160, 160), int) for image in dataset["images"]}
    for annotation, mask in zip(dataset["annotations"], masks_of(dataset), strict=True):
        sums[annotation["image_id"]] += mask
    assert max(total.max() for total in sums.values()) == 1


def test_objects_stand_out_where_their_masks_say(digits_directory):
    # A mask on the wrong pixels would have as little contrast to its surroundings as any other
    # place.
    dataset = load(digits_directory, "train")
    files = {image["id"]: image["file_name"] for image in dataset["images"]}
    contrasts, shifted = [], []
    for annotation, mask in zip(dataset["annotations"], masks_of(dataset), strict=True):
        path = digits_directory / "train" / files[annotation["image_id"]]
        with Image.open(path) as image:
            pixels = np.asarray(image, dtype=float)
        x, y, width, height = (int(number) for number in annotation["bbox"])
        window = (slice(y, y + height), slice(x, x + width))
        for result, selected in (
            (contrasts, mask),
            (shifted, np.roll(mask, (mask.shape[0] // 2, mask.shape[1] // 2), (0, 1))),
        ):
            inside = selected[window].astype(bool)
            if inside.any() and not inside.all():
                colors = pixels[window]
                result.append(np.abs(colors[inside].mean(0) - colors[~inside].mean(0)).max())
    assert np.median(contrasts) > 60
    assert np.median(contrasts) > 2 * np.median(shifted or [0])


def test_sources_and_classes(digits_directory):
    from sklearn.datasets import load_digits

    targets = load_digits().target
    used = {}
    for split in ("train", "val"):
        dataset = load(digits_directory, split)
        assert [category["name"] for category in dataset["categories"]] == list(CLASSES)
        assert [category["id"] for category in dataset["categories"]] == list(range(1, 11))
        used[split] = {annotation["source"] for annotation in dataset["annotations"]}
        assert used[split] <= set(stroke_sources(split).tolist())
        for annotation in dataset["annotations"]:
            assert annotation["category_id"] == targets[annotation["source"]] + 1
    assert not used["train"] & used["val"]
    assert not set(stroke_sources("train")) & set(stroke_sources("val"))
    assert len(stroke_sources("train")) + len(stroke_sources("val")) == len(targets)
    assert len(Counter(targets[stroke_sources("val")])) == 10


def test_backgrounds_of_the_splits_are_disjoint():
    for train, val in zip(BACKGROUND_COLUMNS["train"], BACKGROUND_COLUMNS["val"], strict=True):
        assert set(range(*train)).isdisjoint(range(*val))


def test_variety(digits_directory):
    dataset = load(digits_directory, "train")
    boxes = np.array([annotation["bbox"] for annotation in dataset["annotations"]])
    long_sides = boxes[:, 2:].max(axis=1)
    assert long_sides.min() < 25 and long_sides.max() > 60 and long_sides.max() <= 82
    aspects = boxes[:, 2] / boxes[:, 3]
    assert aspects.min() < 0.6 and aspects.max() > 1.2
    per_image = Counter(annotation["image_id"] for annotation in dataset["annotations"])
    assert max(per_image.values()) == 6 and len(set(per_image.values())) >= 4
    categories = {annotation["category_id"] for annotation in dataset["annotations"]}
    assert categories == set(range(1, 11))


def test_same_bytes_again_and_as_a_prefix(digits_directory, tmp_path):
    again = prepare_digits(tmp_path / "digits", counts={"train": 12, "val": 4})
    for split, count in (("train", 12), ("val", 4)):
        dataset = load(digits_directory, split)
        expected = {
            **dataset,
            "images": dataset["images"][:count],
            "annotations": [a for a in dataset["annotations"] if a["image_id"] <= count],
        }
        written = (again / "annotations" / f"{split}.json").read_text()
        assert written == json.dumps(expected, separators=(",", ":"))
        for image in expected["images"]:
            first = (digits_directory / split / image["file_name"]).read_bytes()
            assert (again / split / image["file_name"]).read_bytes() == first


def test_registered_names_make_and_load(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(digits, "COUNTS", {"train": 5, "val": 3})
    dicts = DatasetCatalog.get("digits_val")
    assert len(dicts) == 3
    assert all(os.path.isfile(record["file_name"]) for record in dicts)
    metadata = MetadataCatalog.get("digits_val")
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == list(CLASSES)
    assert metadata.thing_dataset_id_to_contiguous_id[1] == 0
    assert metadata.json_file == str(tmp_path / "digits" / "annotations" / "val.json")
    assert metadata.image_root == str(tmp_path / "digits" / "val")
    # The place follows the environment variable after the registration, too.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    assert metadata.json_file.startswith(str(tmp_path / "other"))
    assert os.path.isfile(metadata.json_file)


def test_evaluator_reads_the_registered_annotations(monkeypatch, tmp_path):
    from detectron2.evaluation import COCOEvaluator

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(digits, "COUNTS", {"train": 1, "val": 2})
    # Before anything was loaded: asking for the file makes it.
    evaluator = COCOEvaluator("digits_val", output_dir=str(tmp_path), use_fast_impl=False)
    assert evaluator is not None
    assert (tmp_path / "digits" / "annotations" / "val.json").is_file()


def test_default_counts():
    assert digits.COUNTS["train"] >= 1000 and digits.COUNTS["val"] >= 300


@pytest.mark.slow
def test_killed_making_is_redone(tmp_path):
    code = "import sys; from corrdet.data.digits import prepare_digits; prepare_digits(sys.argv[1])"
    directory = tmp_path / "digits"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".digits.tmp-*/made/train/*.jpg"))) < 10:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not directory.exists()
    counts = {"train": 6, "val": 2}
    prepare_digits(directory, counts=counts)
    assert len(load(directory, "train")["images"]) == len(os.listdir(directory / "train")) == 6
    assert sorted(os.listdir(tmp_path)) == [".digits.lock", "digits"]
