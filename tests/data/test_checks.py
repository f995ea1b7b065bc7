import copy
import logging
import math

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_utils

import corrdet.modeling  # noqa: F401  (registers the detectors)
from corrdet import add_corrdet_config
from corrdet.coco import AnnotationError
from corrdet.data.checks import check_dataset, check_num_classes
from corrdet.data.image_checks import (
    ImageReadError,
    check_images_exist,
    filter_unreadable,
    unreadable_reason,
)
from corrdet.names import config_value

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


def rle(mask: np.ndarray) -> dict:
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (None, "no mask"),
        ([], "no mask"),
        ([[10, 10, 20, 20]], "has 4 coordinates"),
        ([[10, 10, 20, 20, 30, 10], [0, 0, 5, 0, 5, 5, 7]], "has 7 coordinates"),
        ([[10, 10, 20, 20, math.nan, 10]], "not finite"),
        ([[110, 10, 120, 10, 120, 20]], "outside of the 100 x 50 image"),
        ([[10, -30, 20, -30, 20, -1]], "outside of the 100 x 50 image"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "neither polygons nor"),
        ("a mask", "neither polygons nor"),
        (rle(np.zeros((50, 100))), "is empty"),
        (rle(np.ones((100, 50))), "[50, 100], as its image has, got [100, 50]"),
        ({"size": [50, 100], "counts": [5000]}, "is empty"),
        ({"size": [50, 100], "counts": [5, 10, 3]}, "runs of 5000 pixels in all, got 18"),
        ({"size": [50, 100], "counts": [5, -10, 5005]}, "expected counts of pixels, got [5, -10"),
        ({"size": [50, 100], "counts": "!!!~~~"}, "expected runs that cover [50, 100] pixels"),
        ({"size": [50, 100], "counts": None}, "expected a compressed run-length encoding"),
        ({"size": [50, 100]}, "neither polygons nor"),
        ([[10, 10, 20, 20, 30, 30]], "is empty"),
        ([[10, 10, 10.2, 10, 10.2, 10.2]], "is empty"),
        (np.zeros((50, 100), bool), "is empty"),
    ],
)
def test_bad_masks(mask, reason):
    good = annotation(segmentation=[[10, 10, 20, 10, 20, 20]])
    bad = annotation(segmentation=mask)
    with pytest.raises(AnnotationError) as caught:
        check(good, bad, check_masks=True)
    for words in ("images/7.jpg", "annotation 1", "1 bad annotation", reason):
        assert words in str(caught.value)
    assert check(good, bad, check_masks=True, skip_bad_annotations=True)[0]["annotations"] == [good]
    # Of no concern to who has none, nor of regions that are left out anyway.
    check(good, bad)
    check(good, {**bad, "iscrowd": 1}, check_masks=True)


def test_good_masks():
    masks = [
        [[-5, -5, 20, 10, 20, 20]],
        [[110, 10, 120, 10, 120, 20], [10, 10, 20, 10, 20, 20]],
        # Two triangles that it runs around in opposite directions.
        [[10, 10, 20, 20, 20, 10, 10, 20]],
        [np.array([10.0, 10.0, 20.0, 10.0, 20.0, 20.0])],
        rle(np.eye(50, 100)),
        {"size": [50, 100], "counts": [100, 20, 4880]},
        np.eye(50, 100, dtype=bool),
    ]
    original = record(*(annotation(segmentation=mask) for mask in masks))
    (checked,) = check_dataset("things", [original], num_classes=3, check_masks=True)
    assert checked is original
    unsized = {key: original[key] for key in ("file_name", "annotations")}
    (checked,) = check_dataset("things", [unsized], num_classes=3, check_masks=True)
    assert checked is unsized


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


def test_what_is_left_out_is_listed_whole_and_what_is_refused_is_not(some_unreadable, caplog):
    torn = [some_unreadable[2]] * 12
    with caplog.at_level(logging.WARNING):
        filter_unreadable("things", [some_unreadable[0], *torn])
    assert caplog.text.count("2.jpg: ") == 12 and " more" not in caplog.text
    with pytest.raises(ImageReadError) as caught:
        check_dataset("things", torn, check_images=True)
    assert str(caught.value).count("2.jpg: ") == 10 and "and 2 more" in str(caught.value)


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


def test_missing_images_are_named(some_unreadable, tmp_path):
    remote = [record(file_name="s3://bucket/1.jpg")]
    check_images_exist("things", some_unreadable[:3] + remote)
    missing = [record(file_name=str(tmp_path / f"gone{n}.jpg")) for n in range(12)]
    with pytest.raises(ImageReadError) as caught:
        check_images_exist("things", some_unreadable[:3] + missing)
    message = str(caught.value)
    assert "12 of the 15 images of data set 'things' are missing" in message
    assert "gone9.jpg" in message and "gone10.jpg" not in message and "and 2 more" in message
    assert "DATASETS.SKIP_UNREADABLE" in message


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("CorrdetRetinaNet", "MODEL.RETINANET.NUM_CLASSES"),
        ("RetinaNet", "MODEL.RETINANET.NUM_CLASSES"),
        ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("CorrdetRCNN", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("CorrdetSparseRCNN", "MODEL.SPARSE_RCNN.NUM_CLASSES"),
    ],
)
def test_another_number_of_classes_than_the_model_has(architecture, key):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.merge_from_list([key, 9])
    with pytest.raises(AnnotationError) as caught:
        check_num_classes(cfg, "digits_train")
    assert str(caught.value) == (
        "data set 'digits_train' has 10 classes (zero, one, two, three, four, five, six, seven, "
        f"eight, nine) but {key} is 9"
    )
    cfg.merge_from_list([key, 10])
    check_num_classes(cfg, "digits_train")
    cfg.merge_from_list([key, 11])
    with pytest.raises(AnnotationError, match=f"has 10 classes .* but {key} is 11"):
        check_num_classes(cfg, "digits_train")


def test_every_detector_of_corrdet_has_its_classes_checked():
    detectors = {name for name, _ in META_ARCH_REGISTRY if name.startswith("Corrdet")}
    assert len(detectors) >= 12
    cfg = get_cfg()
    add_corrdet_config(cfg)
    for name in detectors:
        config_value(cfg, META_ARCH_REGISTRY.get(name).num_classes_key)


def test_models_and_data_sets_without_known_classes_are_not_checked():
    cfg = get_cfg()
    check_num_classes(cfg, "things")
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    check_num_classes(cfg, "digits_train")


class TestFirstPixel:
    """Boxes in 0..1 are told by the data set, not by one box."""

    def boxes(self, count, tiny):
        whole, share = annotation((1, 2, 30, 20)), annotation((0.1, 0.2, 0.7, 0.7))
        return [record(*[whole] * (count - tiny), *[share] * tiny)]

    @pytest.mark.parametrize("count, tiny", [(1, 1), (4, 4), (4, 2)])
    def test_shares_are_refused(self, count, tiny):
        with pytest.raises(AnnotationError, match=rf"\({tiny} in 0..1\)(.|\n)*to be multiplied"):
            check_dataset("nothing", self.boxes(count, tiny))

    def test_a_few_are_real(self, caplog):
        checked = check_dataset("nothing", self.boxes(5, 2))
        assert len(checked[0]["annotations"]) == 5
        assert "2 of 5 boxes lie in the first pixel" in caplog.text
