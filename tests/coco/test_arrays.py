import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from corrdet.coco import (
    CocoFileError,
    detections_from_coco,
    ground_truth_from_coco,
    read_detections,
    read_ground_truth,
)
from tests.helpers.problems import add_masks, detections, ground_truth

BOX = (10.0, 20, 30, 40)


@pytest.fixture
def content():
    return ground_truth([(1, 1, BOX), (2, 2, BOX, 1, 7.0)])


@pytest.fixture
def rows():
    return detections([(1, 1, BOX, 0.5), (2, 2, BOX, 0.25), (1, 2, BOX, 0.75)])


def test_arrays_are_in_the_order_of_the_file(content, rows):
    content["images"].reverse()
    content["categories"].reverse()
    gt = ground_truth_from_coco(content)
    assert gt.image_ids == gt.category_ids == [1, 2]
    assert gt.file_names == ["1.jpg", "2.jpg"] and gt.sizes.tolist() == [[200, 200]] * 2
    assert gt.category_names == ["class 1", "class 2"]
    assert gt.images.tolist() == gt.categories.tolist() == [0, 1]
    assert gt.is_crowd.tolist() == [False, True] and gt.areas.tolist() == [1200, 7]
    found = detections_from_coco(rows, gt)
    assert found.images.tolist() == [0, 1, 0] and found.categories.tolist() == [0, 1, 1]
    assert found.scores.tolist() == [0.5, 0.25, 0.75] and found.areas.tolist() == [1200] * 3
    assert np.array_equal(found.boxes, np.array([BOX] * 3))


def test_what_may_be_missing(content):
    first, second = content["annotations"]
    del first["area"], first["iscrowd"], first["id"], second["id"]
    second["area"] = second["iscrowd"] = None
    for image in content["images"]:
        del image["file_name"], image["width"]
    gt = ground_truth_from_coco(content)
    assert gt.areas.tolist() == [1200, 1200] and not gt.is_crowd.any()
    assert gt.ids.tolist() == [1, 2] and gt.file_names == ["", ""]


def test_ids_may_be_texts(content, rows):
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for row in content["annotations"] + rows:
        row["image_id"] = f"image {row['image_id']}"
    gt = ground_truth_from_coco(content)
    assert gt.image_ids == ["image 1", "image 2"]
    assert detections_from_coco(rows, gt).images.tolist() == [0, 1, 0]


def test_no_detections_and_no_annotations_are_no_error(content):
    gt = ground_truth_from_coco(content)
    assert detections_from_coco([], gt).boxes.shape == (0, 4)
    assert detections_from_coco([], gt, "segm").areas.shape == (0,)
    content["annotations"] = []
    assert ground_truth_from_coco(content).boxes.shape == (0, 4)


def test_masks(content, rows):
    add_masks(content, rows)
    gt = ground_truth_from_coco(content, "segm")
    found = detections_from_coco(rows, gt, "segm")
    assert len(gt.masks) == 2 and len(found.masks) == 3
    # An ellipse and the box around it, to the pixel.
    assert found.areas == pytest.approx([math.pi / 4 * 1200] * 3, rel=0.03)
    assert np.abs(found.boxes - BOX).max() <= 1
    # Results of two heads: areas and boxes are those of the masks.
    for row in rows:
        row["bbox"] = [0, 0, 1, 1]
    assert np.array_equal(detections_from_coco(rows, gt, "segm").boxes, found.boxes)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_annotations_without_boxes(content, rows, iou_type):
    add_masks(content, rows)
    content["annotations"][1]["segmentation"] = encoded(
        np.pad(np.ones((40, 30)), ((20, 140), (10, 160)))
    )
    for annotation in content["annotations"]:
        del annotation["bbox"]
    gt = ground_truth_from_coco(content, iou_type)
    assert gt.boxes == pytest.approx(np.array([BOX] * 2), abs=0.01)
    assert len(gt.notes) == (iou_type == "bbox")
    content["annotations"][1]["segmentation"] = []
    with pytest.raises(CocoFileError, match=r"annotations\[1\]: expected polygons or a mask, got"):
        ground_truth_from_coco(content, iou_type)
    # A single box that is missing is none to be made.
    content["annotations"][1]["bbox"] = list(BOX)
    with pytest.raises(CocoFileError, match=r"annotations\[0\]: expected four numbers under bbox"):
        ground_truth_from_coco(content)


def test_many_masks(content, rows):
    add_masks(content, rows)
    gt = ground_truth_from_coco(content, "segm")
    found = detections_from_coco(rows * 100, gt, "segm")
    assert found.boxes.shape == (300, 4) and len(set(found.areas)) == 1


BAD_ROWS = [
    (1, {"score": math.nan}, r"detections\[1\]: expected a score in \[0, 1\], got nan"),
    (0, {"score": 1.5}, r"detections\[0\]: expected a score in \[0, 1\], got 1.5"),
    (0, {"score": -0.1}, r"detections\[0\]: expected a score in \[0, 1\], got -0.1"),
    (2, {"score": None}, r"detections\[2\]: expected a number under score, got nothing"),
    (2, {"score": "high"}, r"detections\[2\]: expected a number under score, got str 'high'"),
    (1, {"bbox": [1, 2, -3, 4]}, r"\[1\]: expected no negative width or height in bbox, got \[1"),
    (
        1,
        {"bbox": [1, 2, math.nan, 4]},
        r"\[1\]: expected finite numbers in bbox, got \[1.0, 2.0, n",
    ),
    (
        1,
        {"bbox": [1, 2, math.inf, 4]},
        r"\[1\]: expected finite numbers in bbox, got \[1.0, 2.0, i",
    ),
    (1, {"bbox": [1, 2, 3]}, r"\[1\]: expected four numbers under bbox, got list \[1, 2, 3\]"),
    (1, {"bbox": None}, r"\[1\]: expected four numbers under bbox, got nothing"),
    (1, {"bbox": ["a", 2, 3, 4]}, r"\[1\]: expected four numbers under bbox, got list \['a'"),
    (
        2,
        {"image_id": 77},
        r"\[2\]: expected image_id to be of the 2 images of the ground truth, got 77",
    ),
    (
        2,
        {"category_id": 77},
        r"\[2\]: expected category_id to be of the 2 categories of .*, got 77",
    ),
    (2, {"image_id": [1]}, r"\[2\]: expected a number or a text under image_id, got list \[1\]"),
    (2, {"image_id": True}, r"\[2\]: expected a number or a text under image_id, got bool True"),
    (1, {"category_id": True}, r"\[1\]: expected a number or a text under category_id, got bool"),
    (2, {"score": "0.5"}, r"detections\[2\]: expected a number under score, got str '0.5'"),
    (2, {"score": True}, r"detections\[2\]: expected a number under score, got bool True"),
    (1, {"bbox": ["1", 2, 3, 4]}, r"\[1\]: expected four numbers under bbox, got list \['1'"),
    (1, {"bbox": [1, 2, 1e300, 4]}, r"\[1\]: expected finite numbers in bbox, got \[1.0, 2.0, 1e"),
]


@pytest.mark.parametrize(("index", "change", "message"), BAD_ROWS)
def test_bad_detections(content, rows, index, change, message):
    gt = ground_truth_from_coco(content)
    rows[index].update(change)
    with pytest.raises(CocoFileError, match=f"^the detections: .*{message}"):
        detections_from_coco(rows, gt)
    with pytest.raises(CocoFileError, match=r"^a\.json: "):
        detections_from_coco(rows, gt, source="a.json")


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox"])
def test_missing_keys(content, rows, key):
    gt = ground_truth_from_coco(content)
    del rows[1][key]
    with pytest.raises(CocoFileError, match=rf"detections\[1\]: expected .*{key}, got"):
        detections_from_coco(rows, gt)


def test_all_such_rows_are_counted(content, rows):
    gt = ground_truth_from_coco(content)
    for row in rows[1:]:
        row["score"] = 2
    with pytest.raises(CocoFileError, match=r"detections\[1\].*\(and 1 more such rows\)"):
        detections_from_coco(rows, gt)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": 1}, "expected a list of detections, got dict"),
        ({"annotations": []}, r"got dict .* \(it looks like an annotation file:"),
        ([3], r"detections\[0\]: expected an object with image_id, got int 3"),
        (None, "expected a list of detections, got nothing"),
    ],
)
def test_results_that_are_no_list_of_objects(content, results, message):
    gt = ground_truth_from_coco(content)
    with pytest.raises(CocoFileError, match=message):
        detections_from_coco(results, gt)


def test_masks_in_place_of_boxes_and_boxes_in_place_of_masks(content, rows):
    gt = ground_truth_from_coco(content)
    masks = [{**row} for row in rows]
    add_masks(content, masks)
    found = detections_from_coco(masks, gt)
    assert np.abs(found.boxes - [row["bbox"] for row in rows]).max() <= 1
    assert found.notes == ("There are masks and no boxes: boxes are those around the masks.",)
    gt = ground_truth_from_coco(content, "segm")
    with pytest.raises(CocoFileError, match=r"\[0\]: expected a run-length encoding, got nothing"):
        detections_from_coco(rows, gt, "segm")
    masks[1]["segmentation"] = {"size": [200, 200], "counts": [40000]}
    with pytest.raises(CocoFileError, match=r"\[1\]: expected a compressed run-length encoding"):
        detections_from_coco(masks, gt, "segm")


def test_a_model_that_diverged_is_measured(content, rows):
    gt = ground_truth_from_coco(content)
    rows[0]["score"], rows[1]["bbox"] = math.nan, [math.nan] * 4
    assert len(detections_from_coco(rows, gt, check_values=False).scores) == 3


@pytest.mark.parametrize(
    ("part", "index", "change", "message"),
    [
        (
            "images",
            1,
            {"id": 1},
            r"images\[1\]: expected an id of its own, got 1, that of images\[0",
        ),
        ("categories", 1, {"id": 1}, r"categories\[1\]: expected an id of its own, got 1"),
        ("annotations", 1, {"id": 1}, r"annotations\[1\]: expected an id of its own, got 1"),
        ("images", 1, {"id": "two"}, r"images: expected ids of one type, got numbers and texts"),
        (
            "images",
            1,
            {"id": None},
            r"images\[1\]: expected a whole number or a text as id, got noth",
        ),
        (
            "annotations",
            0,
            {"id": [1]},
            r"annotations\[0\]: expected a whole number or a text as id",
        ),
        ("images", 0, {"id": 1.0}, r"images\[0\]: expected a whole number or a text as id, got fl"),
        ("images", 0, {"id": True}, r"images\[0\]: expected a whole number or a text as id, got b"),
        (
            "images",
            0,
            {"width": "200"},
            r"image 1: expected a whole number of pixels as width, .*got s",
        ),
        (
            "images",
            0,
            {"height": -2},
            r"image 1: expected a whole number of pixels as height, .*got i",
        ),
        ("annotations", 1, {"image_id": 9}, r"annotations\[1\]: expected image_id to be of the 2"),
        (
            "annotations",
            1,
            {"category_id": 9},
            r"annotations\[1\]: expected category_id to be of the 2",
        ),
        ("annotations", 0, {"bbox": [0, 0, -1, 5]}, r"annotations\[0\]: expected no negative"),
        ("annotations", 0, {"bbox": "box"}, r"annotations\[0\]: expected four numbers under bbox"),
        ("annotations", 0, {"area": "9"}, r"annotations\[0\]: expected a number under area"),
        ("annotations", 0, {"area": -5}, r"annotations\[0\]: expected a finite area, not negative"),
        ("annotations", 0, {"area": math.nan}, r"annotations\[0\]: expected a finite area, .* nan"),
        ("annotations", 1, {"area": math.inf}, r"annotations\[1\]: expected a finite area, .* inf"),
        ("annotations", 1, {"iscrowd": "0"}, r"annotations\[1\]: expected iscrowd to be 0 or 1"),
        ("annotations", 1, {"iscrowd": 2}, r"annotations\[1\]: expected iscrowd to be 0 or 1, got"),
    ],
)
def test_bad_annotations(content, part, index, change, message):
    content[part][index].update(change)
    with pytest.raises(CocoFileError, match=f"^the annotations: {message}"):
        ground_truth_from_coco(content)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_missing_lists(content, part):
    del content[part]
    with pytest.raises(CocoFileError, match=f"expected a list '{part}', got nothing"):
        ground_truth_from_coco(content)
    with pytest.raises(CocoFileError, match="expected an object with the lists .*, got list"):
        ground_truth_from_coco([])


def test_the_area_of_a_mask_is_that_of_its_pixels(content, rows):
    add_masks(content, rows)
    del content["annotations"][0]["area"]
    gt = ground_truth_from_coco(content, "segm")
    assert gt.areas[0] == mask_utils.area(gt.masks[0]) != 1200


POLYGON = [10.0, 10, 50, 10, 30, 40]
BAD_MASKS = [
    (None, "expected polygons or a mask, got nothing"),
    ([], r"expected polygons or a mask, got \[\]"),
    ({"size": [200, 200]}, "expected polygons or a mask, got {'size'"),
    ([[1, 2, 3, 4]], "expected polygons of at least three points"),
    ([POLYGON, [*POLYGON, 1]], "expected polygons of at least three points"),
    ([["1", *POLYGON[1:]]], "expected polygons of at least three points"),
    ([[math.nan, *POLYGON[1:]]], "expected finite coordinates of at most 2000"),
    ([[math.inf, *POLYGON[1:]]], "expected finite coordinates of at most 2000"),
    ([[1e9, *POLYGON[1:]]], "expected finite coordinates of at most 2000"),
    ({"size": [200, 200], "counts": [100, 300]}, "expected runs of 40000 pixels in all, got 400"),
    ({"size": [200, 200], "counts": [-1, 40001]}, "expected counts of pixels"),
    ({"size": [200, 100], "counts": [20000]}, r"expected a mask of .* \[200, 200\], .* \[200, 100"),
]


@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_bad_masks_of_the_ground_truth(content, rows, mask, message):
    add_masks(content, rows)
    content["annotations"][1]["segmentation"] = mask
    with pytest.raises(CocoFileError, match=rf"annotations\[1\]: {message}"):
        ground_truth_from_coco(content, "segm")


def test_polygons_need_the_size_of_their_image(content, rows):
    add_masks(content, rows)
    del content["images"][0]["width"]
    with pytest.raises(CocoFileError, match=r"annotations\[0\]: expected its image to have width"):
        ground_truth_from_coco(content, "segm")


def encoded(mask):
    counts = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode()}


def test_every_encoding_of_pycocotools_is_taken(content):
    rng = np.random.default_rng(0)
    masks = [np.zeros((200, 200)), np.ones((200, 200)), np.eye(200)]
    masks += [rng.random((200, 200)) < density for density in (0.001, 0.1, 0.5, 0.999)]
    rows = detections([(1, 1, BOX, 0.5)] * len(masks))
    for row, mask in zip(rows, masks, strict=True):
        row["segmentation"] = encoded(mask)
    content["annotations"] = []
    found = detections_from_coco(rows, ground_truth_from_coco(content, "segm"), "segm")
    assert found.areas.tolist() == [mask.sum() for mask in masks]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda mask: {**mask, "size": [200, 199]},
            r"expected a mask of .*\[200, 200\], as its im",
        ),
        (lambda mask: {**mask, "size": [100, 100]}, r"expected a mask of .*, got \[100, 100\]"),
        (lambda mask: {**mask, "size": "200"}, r"expected a size of \[height, width\], got '200'"),
        (lambda mask: {**mask, "size": [-200, 200]}, r"expected a size of \[height, width\]"),
        (lambda mask: {**mask, "counts": mask["counts"][:5]}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": mask["counts"][:-1]}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": mask["counts"] + "1"}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": mask["counts"] + "P"}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": ""}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": "!!\x7f\x00zz"}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": "o" * 40}, "expected runs that cover"),
        (lambda mask: {**mask, "counts": "\u00e4"}, "expected counts in ASCII"),
        (lambda mask: {"size": mask["size"]}, "expected a run-length encoding, got {"),
        (lambda _: [POLYGON], "expected a run-length encoding, got "),
    ],
)
def test_bad_masks_of_results(content, rows, change, message):
    gt = ground_truth_from_coco(content)
    for row in rows:
        row["segmentation"] = encoded(np.eye(200))
    rows[2]["segmentation"] = change(rows[2]["segmentation"])
    with pytest.raises(CocoFileError, match=rf"^the detections: detections\[2\]: {message}"):
        detections_from_coco(rows, gt, "segm")


def test_negative_runs_are_refused(content, rows):
    # 40000 pixels in all, of which the second run has -8: 20004, -8, 20004.
    def digits(number):
        text = ""
        while True:
            digit, number = number & 31, number >> 5
            is_last = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if is_last else 32))
            if is_last:
                return text

    assert digits(40000) == encoded(np.zeros((200, 200)))["counts"]
    gt = ground_truth_from_coco(content)
    for row in rows:
        row["segmentation"] = {"size": [200, 200], "counts": digits(40000)}
    assert detections_from_coco(rows, gt, "segm").areas.tolist() == [0] * 3
    rows[0]["segmentation"]["counts"] = digits(20004) + digits(-8) + digits(20004)
    with pytest.raises(CocoFileError, match=r"detections\[0\]: expected runs that cover"):
        detections_from_coco(rows, gt, "segm")


def test_unknown_iou_type(content):
    with pytest.raises(ValueError, match="expected an IoU type of bbox, segm, got 'keypoints'"):
        ground_truth_from_coco(content, "keypoints")


class TestFiles:
    def test_are_read(self, content, rows, tmp_path):
        (tmp_path / "gt.json").write_text(json.dumps(content))
        (tmp_path / "a.json").write_text(json.dumps(rows))
        gt = read_ground_truth(tmp_path / "gt.json")
        assert len(gt.ids) == 2 and len(read_detections(tmp_path / "a.json", gt).scores) == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected JSON, it may be incomplete"),
            ('[{"image_id": 1,', "expected JSON, it may be incomplete"),
            ("\xff\xfe", "expected JSON in UTF-8"),
            ("[" * 100_000, "expected a COCO file, got lists in lists"),
        ],
        ids=["empty", "cut off", "binary", "deep"],
    )
    def test_that_are_not_json(self, content, text, message, tmp_path):
        (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
        message = rf"a\.json: {message}"
        with pytest.raises(CocoFileError, match=message):
            read_ground_truth(tmp_path / "a.json")
        with pytest.raises(CocoFileError, match=message):
            read_detections(tmp_path / "a.json", ground_truth_from_coco(content))

    def test_with_the_mark_of_an_encoding(self, content, tmp_path):
        (tmp_path / "gt.json").write_text(json.dumps(content), encoding="utf-8-sig")
        assert len(read_ground_truth(tmp_path / "gt.json").ids) == 2

    def test_errors_name_the_file_and_are_one_line(self, content, rows, tmp_path):
        rows[2]["score"] = "x" * 1000
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(CocoFileError, match=r"a\.json: detections\[2\]") as caught:
            read_detections(tmp_path / "a.json", ground_truth_from_coco(content))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
