"""COCO files as dataset dicts: what Detectron2's loader makes of them, from one parse."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from pycocotools import mask as mask_utils

from corrdet.coco import AnnotationError, CocoFileError, read, read_once
from corrdet.data.coco import check_coco_polygons, load_coco, load_registered, read_annotations
from tests.helpers.opens import count_opens
from tests.helpers.problems import as_lists, random_problem


@pytest.fixture
def forget():
    """Function that names data sets which are gone after the test."""
    names = []
    yield lambda name: names.append(name) or name
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def content() -> dict:
    """Crowds, run lengths, polygons of which some are none, keypoints, ids with gaps."""
    content, _ = random_problem(5, images=8, masks=True)
    annotations = content["annotations"]
    annotations[0]["segmentation"] = [[1.0, 1.0, 50.0, 1.0, 50.0, 50.0], [1.0, 2.0, 3.0, 4.0]]
    annotations[1]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]
    annotations[2]["segmentation"] = []
    annotations[3]["segmentation"] = mask_utils.merge(
        mask_utils.frPyObjects([[1, 1, 50, 1, 50, 50]], 200, 200)
    )
    annotations[3]["segmentation"]["counts"] = annotations[3]["segmentation"]["counts"].decode()
    annotations[4]["keypoints"] = [3, 4, 2, 5, 6, 0]
    del annotations[5]["segmentation"], annotations[6]["iscrowd"], annotations[7]["bbox"]
    annotations[8]["image_id"] = 10_000
    return content


@pytest.mark.parametrize("extra", [(), ("id", "area")])
def test_equal_to_detectron2s(content, extra, tmp_path, forget):
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    ours, theirs = forget("ours"), forget("theirs")
    expected = load_coco_json(str(path), "images", theirs, list(extra))
    with read_once():
        file = read_annotations(str(path))
        before = as_lists(file.content)
        assert as_lists(load_coco(str(path), "images", ours, extra)) == expected
        assert as_lists(file.content) == before
    assert sum(len(record["annotations"]) for record in expected) > 10
    assert MetadataCatalog.get(ours).thing_classes == MetadataCatalog.get(theirs).thing_classes
    assert (
        MetadataCatalog.get(ours).thing_dataset_id_to_contiguous_id
        == MetadataCatalog.get(theirs).thing_dataset_id_to_contiguous_id
    )


def test_what_is_said_of_objects_that_are_left_out(content, tmp_path, forget, caplog):
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        load_coco(path, "images", forget("ours"))
    number = len(content["annotations"])
    assert f"has {number} annotations, of which only {number - 1} are of images" in caplog.text
    assert "left out 1 object(s) without a valid polygon" in caplog.text
    assert "category ids are not 1..4" in caplog.text


def test_polygons_that_are_left_out_are_refused_or_logged(content, tmp_path, caplog):
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError) as caught:
        check_coco_polygons(read(path))
    for words in (str(path), "2 object(s)", "annotation id 2: ", "has 4 coord", "SKIP_BAD_ANNO"):
        assert words in str(caught.value)
    with caplog.at_level(logging.WARNING):
        check_coco_polygons(read(path), skip_bad_annotations=True)
    assert "annotation id 2: " in caplog.text and "which are left out" in caplog.text


class TestRegisteredByDetectron2:
    @pytest.fixture
    def path(self, content, tmp_path):
        for row in content["annotations"]:
            row["segmentation"] = []
        path = tmp_path / "things.json"
        path.write_text(json.dumps(content))
        return str(path)

    def test_is_parsed_once(self, path, forget):
        name = forget("theirs")
        register_coco_instances(name, {}, path, "images")
        DatasetCatalog.get(name)
        expected = load_coco_json(path, "images", extra_annotation_keys=["id"])
        contiguous = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        for record in expected:
            for annotation in record["annotations"]:
                annotation["category_id"] = contiguous[annotation["category_id"]]
        with count_opens(path) as opens:
            assert load_registered(name) == expected
        assert opens == {path: 1}

    def test_a_loader_of_ones_own_is_called(self, path, forget):
        name = forget("own")
        expected = load_coco_json(path, "images", forget("theirs"))
        DatasetCatalog.register(name, lambda: expected)
        MetadataCatalog.get(name).set(json_file=path, evaluator_type="coco")
        assert load_registered(name) is expected

    def test_what_looks_like_it_but_is_not(self, path, forget):
        name = forget("own")

        def register_coco_instances(json_file, image_root, name):
            return lambda: [json_file, image_root, name]

        loader = register_coco_instances(path, "images", name)
        loader.__module__ = load_coco_json.__module__
        loader.__qualname__ = "register_coco_instances.<locals>.<lambda>"
        DatasetCatalog.register(name, loader)
        MetadataCatalog.get(name).set(json_file=path, evaluator_type="coco")
        assert load_registered(name) == [path, "images", name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(id=1), "another annotation has the same id"),
        (lambda c: c["annotations"][1].update(ignore=1), "annotation id 2: a key 'ignore' is not"),
        (lambda c: c["annotations"][1].update(bbox=[]), r"annotation id 2: bbox is \[\], expected"),
        (lambda c: c["images"][1].pop("width"), "has no width"),
        (lambda c: c.pop("categories"), "expected a list 'categories'"),
    ],
)
@pytest.mark.parametrize("by_us", [True, False])
def test_what_is_wrong_is_said(change, message, by_us, tmp_path, forget):
    content, _ = random_problem(5, images=8)
    change(content)
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    name = forget("things")
    if by_us:
        DatasetCatalog.register(name, lambda: load_coco(str(path), "images", name))
        MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="coco")
    else:
        register_coco_instances(name, {}, str(path), "images")
    with pytest.raises(CocoFileError, match=rf"things\.json(.|\n)*{message}"):
        load_registered(name)
