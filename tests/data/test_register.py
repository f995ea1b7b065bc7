import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from corrdet.data.register import RegistrationError, parse_entry, register_from_config


@pytest.fixture
def entry(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "1.png")
    dataset = {
        "categories": [{"id": 1, "name": "crate"}],
        "images": [{"id": 1, "file_name": "1.png", "width": 20, "height": 10}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}
        ],
    }
    (tmp_path / "crates.json").write_text(json.dumps(dataset))
    yield f"test_crates={tmp_path}/crates.json:{tmp_path}"
    for name in ("test_crates", "test_other"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def test_registered_data_set_loads(entry, tmp_path):
    assert register_from_config((entry,)) == ["test_crates"]
    assert register_from_config([entry, entry]) == ["test_crates", "test_crates"][:1]
    (record,) = DatasetCatalog.get("test_crates")
    assert record["file_name"] == str(tmp_path / "1.png")
    assert record["annotations"][0]["category_id"] == 0
    metadata = MetadataCatalog.get("test_crates")
    assert metadata.thing_classes == ["crate"] and metadata.evaluator_type == "coco"


def test_paths_with_colons():
    assert parse_entry("n=s3://b/a.json:s3://b/images") == (
        "n",
        "s3://b/a.json",
        "s3://b/images",
    )


@pytest.mark.parametrize("bad", ["", "name", "name=a.json", "name=a.xml:images", "a b=x.json:y", 3])
def test_bad_form(bad):
    with pytest.raises(RegistrationError, match="name=annotations.json:image_root"):
        register_from_config([bad])


def test_missing_files(entry, tmp_path):
    with pytest.raises(RegistrationError, match="absent.json"):
        register_from_config([f"test_other={tmp_path}/absent.json:{tmp_path}"])
    # Nothing of a list with an error is registered.
    with pytest.raises(RegistrationError, match="nowhere"):
        register_from_config([entry, f"test_other={tmp_path}/crates.json:{tmp_path}/nowhere"])
    assert "test_crates" not in DatasetCatalog


@pytest.mark.parametrize("taken", ["test_crates", "digits_train", "coco_2017_val"])
def test_name_that_is_taken(entry, tmp_path, taken):
    register_from_config([entry])
    (tmp_path / "other").mkdir()
    with pytest.raises(RegistrationError, match=f"{taken} is taken"):
        register_from_config([f"{taken}={tmp_path}/crates.json:{tmp_path}/other"])
