from __future__ import annotations

import copy
import logging
import math

import pytest
from detectron2.structures import BoxMode
from PIL import Image

from corrdet.data.checks import (
    AnnotationError,
    ImageReadError,
    check_dataset,
    filter_unreadable,
    unreadable_reason,
)

WIDTH, HEIGHT = 100, 50


def record(*annotations: dict, file_name: str = "images/7.jpg") -> dict:
    return {
        "file_name": file_name,
        "image_id": 7,
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": list(annotations),
    }


def annotation(box=(10, 10, 20, 20), category=0, mode=BoxMode.XYWH_ABS, **more) -> dict:
    return {"bbox": list(box), "bbox_mode": mode, "category_id": category, "iscrowd": 0, **more}


def check(*annotations: dict, **options) -> list[dict]:
    return check_dataset("things", [record(*annotations)], num_classes=3, **options)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation((10, 10, 0, 5)), "no width or no height"),
        (annotation((10, 10, 5, -1)), "no width or no height"),
        (annotation((10, 10, 5, 5), mode=BoxMode.XYXY_ABS), "no width or no height"),
        (annotation((math.nan, 0, 5, 5)), "not finite"),
        (annotation((0, 0, math.inf, 5)), "not finite"),
        (annotation((0, 0, 5)), "not four numbers"),
        (annotation((100, 10, 20, 20)), "outside of the 100 x 50 image"),
        (annotation((10, -30, 20, 20)), "outside of the 100 x 50 image"),
        (annotation((90, 10, 13, 20)), "overhangs the 100 x 50 image (w x h) by 3 pixels"),
        (annotation(category=3), "category id 3 is not in 0..2"),
        (annotation(category=-1), "category id -1 is not in 0..2"),
        (annotation(category="car"), "'car' is not an integer"),
        (annotation((50, 20, 10, 10, 30), mode=BoxMode.XYWHA_ABS), "not supported"),
    ],
)
def test_bad_annotations(bad, reason, caplog):
    good = annotation()
    with pytest.raises(AnnotationError) as caught:
        check(good, bad)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for words in ("'things'", "images/7.jpg", "annotation 1", "1 bad annotation", reason):
        assert words in message
    with caplog.at_level(logging.WARNING):
        (kept,) = check(good, bad, skip_bad_annotations=True)
    assert kept["annotations"] == [good]
    assert "left out 1 bad annotation" in caplog.text and reason in caplog.text


def test_good_annotations_are_returned_as_they_are():
    original = record(annotation(), annotation((0, 0, 100, 50), category=2))
    (checked,) = check_dataset("things", [original], num_classes=3)
    assert checked is original


def test_slight_overhang_is_clipped():
    original = record(
        annotation((-1, -0.5, 50, 20)),
        annotation((90, 40, 102, 50.5), mode=BoxMode.XYXY_ABS),
    )
    before = copy.deepcopy(original)
    (checked,) = check_dataset("things", [original], num_classes=3)
    assert [a["bbox"] for a in checked["annotations"]] == [[0, 0, 49, 19.5], [90, 40, 100, 50]]
    assert original == before


def test_first_ten_are_listed_and_all_counted():
    with pytest.raises(AnnotationError) as caught:
        check(*[annotation((1, 1, 0, 0), id=100 + n) for n in range(13)], annotation(category=9))
    message = str(caught.value)
    assert "14 bad annotation(s) (1 bad category, 13 degenerate)" in message
    assert "annotation 9, id 109" in message and "annotation 10" not in message
    assert "and 4 more" in message


def test_classes_come_from_the_metadata():
    dicts = [record(annotation(category=9))]
    assert check_dataset("digits_train", dicts) == dicts
    with pytest.raises(AnnotationError, match="not in 0..9"):
        check_dataset("digits_train", [record(annotation(category=10))])


def test_data_sets_without_annotations_pass():
    dicts = [{"file_name": "1.jpg", "width": 3, "height": 3}, record()]
    assert check_dataset("things", dicts) == dicts


def test_digits_pass(digits_dicts):
    checked = check_dataset("digits_train", digits_dicts, check_images=True)
    assert all(a is b for a, b in zip(checked, digits_dicts, strict=True))


@pytest.fixture
def some_unreadable(tmp_path) -> list[dict]:
    """Five images: good, empty, torn, missing, good."""
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for path in (paths[0], paths[2], paths[4]):
        Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(path)
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:-1000])
    return [record(file_name=str(path)) for path in paths]


def test_unreadable_images_are_dropped_and_named(some_unreadable, caplog):
    with caplog.at_level(logging.WARNING):
        kept = filter_unreadable("things", some_unreadable)
    assert kept == [some_unreadable[0], some_unreadable[4]]
    for bad in some_unreadable[1:4]:
        assert bad["file_name"] in caplog.text
    assert "left out 3 of 5" in caplog.text
    assert check_dataset("things", some_unreadable, skip_unreadable=True) == kept


def test_unreadable_images_are_reported(some_unreadable):
    with pytest.raises(ImageReadError) as caught:
        check_dataset("things", some_unreadable, check_images=True)
    assert "3 image(s)" in str(caught.value) and "SKIP_UNREADABLE" in str(caught.value)
    # Images are read only when asked for.
    assert check_dataset("things", some_unreadable) == some_unreadable


def test_all_unreadable(some_unreadable):
    with pytest.raises(ImageReadError, match="none of the 3 images"):
        filter_unreadable("things", some_unreadable[1:4])


def test_unreadable_reason(some_unreadable):
    assert unreadable_reason(some_unreadable[0]["file_name"]) is None
    assert "FileNotFoundError" in unreadable_reason(some_unreadable[3]["file_name"])
