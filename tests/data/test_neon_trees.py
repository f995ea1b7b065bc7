import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from corrdet.data.neon_trees import PHOTOGRAPHS, TILE, WHEEL, prepare_neon_trees, tile_corners


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The real thing: downloaded by pip, unless the environment names a copy."""
    root = tmp_path_factory.mktemp("datasets")
    prepare_neon_trees(root / "neon_trees")
    return root


@pytest.mark.slow
def test_conversion(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for split, objects in (("train", 574 + 37), ("val", 279 + 61)):
        dicts = DatasetCatalog.get(f"neon_trees_{split}")
        metadata = MetadataCatalog.get(f"neon_trees_{split}")
        assert metadata.thing_classes == ["tree"]
        dataset = json.loads(Path(metadata.json_file).read_text())
        assert len(dicts) == len(dataset["images"]) == len(os.listdir(metadata.image_root))
        for annotation in dataset["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= TILE and 0 <= y < y + height <= TILE
            assert annotation["iscrowd"] == (annotation["share"] < 0.3)
            assert annotation["category_id"] == 1
        # Every crown is in some tile with nearly all of it, and hardly any is lost.
        assert sum(a["share"] > 0.3 for a in dataset["annotations"]) >= objects
        assert sum(a["share"] == 1 for a in dataset["annotations"]) > 0.5 * objects
        with Image.open(dicts[0]["file_name"]) as tile:
            assert tile.size == (TILE, TILE) and tile.mode == "RGB"


@pytest.mark.slow
def test_every_crown_of_the_training_photographs_is_whole_in_a_tile(root):
    # The stride leaves an overlap of 64 pixels, which holds all but the largest crowns.
    dataset = json.loads((root / "neon_trees" / "annotations" / "train.json").read_text())
    files = {image["id"]: image["file_name"] for image in dataset["images"]}
    crowns = set()
    for annotation in dataset["annotations"]:
        if annotation["share"] == 1:
            stem, left, top = files[annotation["image_id"]][: -len(".png")].rsplit("_", 2)
            x, y, width, height = annotation["bbox"]
            crowns.add((stem, int(left) + x, int(top) + y, width, height))
    assert len(crowns) > 0.95 * (574 + 37)


@pytest.mark.slow
def test_no_photograph_is_in_both_splits(root):
    stems = {}
    for split in PHOTOGRAPHS:
        names = os.listdir(root / "neon_trees" / split)
        stems[split] = {name[: -len(".png")].rsplit("_", 2)[0] for name in names}
        assert stems[split] == set(PHOTOGRAPHS[split])
    assert not stems["train"] & stems["val"]


@pytest.mark.parametrize("size", [(256, 256), (400, 400), (1249, 1035), (257, 300)])
@pytest.mark.parametrize("stride", [192, 256])
def test_tiles_cover_the_photograph(size, stride):
    width, height = size
    for length, values in (
        (width, {left for left, _ in tile_corners(width, height, stride)}),
        (height, {top for _, top in tile_corners(width, height, stride)}),
    ):
        assert min(values) == 0 and max(values) + TILE == length
        ordered = sorted(values)
        assert all(b - a <= stride for a, b in zip(ordered, ordered[1:], strict=False))


def test_wrong_wheel_is_refused(tmp_path):
    wheel = tmp_path / WHEEL.file_name
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(ValueError) as caught:
        prepare_neon_trees(tmp_path / "neon_trees", wheel=wheel)
    assert WHEEL.sha256 in str(caught.value)
    assert str(wheel) in str(caught.value)
    assert not (tmp_path / "neon_trees").exists()


def test_missing_wheel_of_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(WHEEL.variable, str(tmp_path / "absent.whl"))
    with pytest.raises(OSError, match="absent.whl"):
        prepare_neon_trees(tmp_path / "neon_trees")


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(WHEEL.variable, raising=False)
    # pip looks into an empty folder instead of an index.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(OSError) as caught:
        prepare_neon_trees(tmp_path / "neon_trees")
    for words in ("pip download --no-deps deepforest==2.1.0", WHEEL.variable):
        assert words in str(caught.value)
    assert not (tmp_path / "neon_trees").exists()
