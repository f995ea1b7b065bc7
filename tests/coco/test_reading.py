import gc
import json
import weakref

import pytest
from pycocotools.coco import COCO

from corrdet.coco import CocoFileError, ground_truth_from_coco, read, read_ground_truth, read_once
from corrdet.errors import CorrdetError
from tests.helpers.opens import count_opens
from tests.helpers.problems import as_lists, pycocotools_evaluation, random_problem


@pytest.fixture
def paths(tmp_path):
    """Two annotation files."""
    paths = []
    for seed in range(2):
        content, _ = random_problem(seed, images=6, masks=True)
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(content))
        paths.append(str(path))
    return paths


def test_a_file_is_parsed_once_in_a_block(paths):
    with count_opens(*paths) as opens:
        with read_once():
            first = read(paths[0])
            with read_once():  # part of it
                assert read(paths[0]) is first
            assert read(paths[0]) is first
            second = read(paths[1])
            assert read(paths[0]) is first and read(paths[1]) is second
        assert opens == {paths[0]: 1, paths[1]: 1}
        assert read(paths[0]) is not first
        assert read(paths[0]) is not read(paths[0])


@pytest.mark.slow
def test_no_more_is_kept_than_is_needed(paths):
    with read_once():
        first = weakref.ref(read(paths[0]))
        assert first() is not None
        second = weakref.ref(read(paths[1]))
        gc.collect()
        assert first() is None and second() is not None
    gc.collect()
    assert second() is None


def test_a_block_that_fails_keeps_nothing(paths):
    with pytest.raises(ZeroDivisionError), read_once():
        first = read(paths[0])
        raise ZeroDivisionError
    with read_once():
        assert read(paths[0]) is not first


def test_arrays_are_made_once(paths):
    file = read(paths[0])
    assert file.ground_truth() is file.ground_truth("bbox") is not file.ground_truth("segm")
    assert file.ground_truth("segm") is file.ground_truth("segm")
    expected = ground_truth_from_coco(json.loads(open(paths[0]).read()))
    assert file.ground_truth().boxes.tolist() == expected.boxes.tolist()
    assert read_ground_truth(paths[0]).ids.tolist() == expected.ids.tolist()


def test_messages_name_the_file(paths):
    file = read(paths[0])
    file.content["annotations"][0]["bbox"] = None
    with pytest.raises(CocoFileError, match=r"0\.json: annotations\[0\]: expected four numbers"):
        file.ground_truth()


def test_pycocotools_object_is_that_of_the_file(paths):
    file = read(paths[0])
    before = as_lists(file.content)
    ours, theirs = file.api(), COCO(paths[0])
    for index in ("dataset", "anns", "imgs", "cats", "imgToAnns", "catToImgs"):
        assert as_lists(getattr(ours, index)) == getattr(theirs, index), index
    # An evaluation writes into its annotations.
    ours.dataset["annotations"][0]["ignore"] = 1
    assert as_lists(file.content) == before


def test_files_of_images_alone(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "categories": []}))
    file = read(path)
    assert not file.has_annotations and list(file.api().imgs) == [1]


def test_an_opener_of_ones_own(paths):
    asked = []

    def opener(path, mode):
        asked.append((path, mode))
        return open(paths[0], mode)

    assert as_lists(read("s3://bucket/0.json", opener).content) == as_lists(read(paths[0]).content)
    assert asked == [("s3://bucket/0.json", "rb")]


def test_a_missing_file_is_the_users(tmp_path):
    with pytest.raises(OSError, match=r"\[Errno 2\] No such file .*none\.json") as caught:
        read(tmp_path / "none.json")
    assert isinstance(caught.value, CorrdetError)


def test_evaluations_agree_after_one_another(paths):
    """pycocotools' evaluation of a file leaves its content as it was."""
    content, rows = random_problem(0, images=6, masks=True)
    file = read(paths[0])
    masks = file.ground_truth("segm").areas
    pycocotools_evaluation(file.api().dataset, rows, "segm")
    assert ground_truth_from_coco(file.content, "segm").areas.tolist() == masks.tolist()
    assert as_lists(file.content) == json.loads(json.dumps(content))
