"""Results of other frameworks give the same arrays as COCO's rows."""

import copy
import gzip
import json

import numpy as np
import pytest

from corrdet.coco import (
    CocoFileError,
    detections_from,
    ground_truth_from_coco,
    read_detections,
    read_ground_truth,
)
from corrdet.coco.messages import printable
from tests.helpers.problems import detections, ground_truth

BOXES = [(10.0, 20.0, 30.0, 40.0), (50.0, 60.0, 20.0, 10.0), (5.0, 5.0, 90.0, 80.0)]
STEMS = {7: "shot_001", 3: "shot_002"}


@pytest.fixture
def gt():
    content = ground_truth([(7, 1, BOXES[0]), (3, 2, BOXES[1])], images=(7, 3))
    for image in content["images"]:
        image["file_name"] = f"train/{STEMS[image['id']]}.jpg"
    return ground_truth_from_coco(content)


@pytest.fixture
def rows():
    return detections([(7, 1, BOXES[0], 0.5), (3, 2, BOXES[1], 0.25), (3, 1, BOXES[2], 0.75)])


def corners(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]


def each(rows, change):
    changed = copy.deepcopy(rows)
    for row in changed:
        change(row)
    return changed


def as_ultralytics(row):
    row["file_name"] = f"{STEMS[row['image_id']]}.jpg"
    row["image_id"] = STEMS[row["image_id"]]


def as_stems(row):
    row["image_id"] = STEMS[row["image_id"]]


def as_windows_paths(row):
    row["file_name"] = f"C:\\data\\train\\{STEMS[row.pop('image_id')]}.jpg"


def as_absolute_paths(row):
    row["image_id"] = f"/data/train/{STEMS[row['image_id']]}.jpg"


def as_other_suffix(row):
    row["file_name"] = f"{STEMS[row.pop('image_id')]}.png"


def as_text(row):
    row["image_id"], row["category_id"] = str(row["image_id"]), str(row["category_id"])
    row["score"], row["bbox"] = str(row["score"]), [str(side) for side in row["bbox"]]


def as_hugging_face(row):
    names = "xmin", "ymin", "xmax", "ymax"
    row["box"] = dict(zip(names, corners(row.pop("bbox")), strict=True))
    row["label"] = f"class {row.pop('category_id')}"


def as_ultralytics_summary(row):
    row["box"] = dict(zip(("x1", "y1", "x2", "y2"), corners(row.pop("bbox")), strict=True))
    row["name"], row["class"] = f"class {row['category_id']}", row.pop("category_id") - 1
    row["confidence"], row["path"] = row.pop("score"), f"{STEMS[row.pop('image_id')]}.jpg"


def of_images(rows, boxes="boxes", key="image_id"):
    images = []
    for image in (7, 3):
        own = [row for row in rows if row["image_id"] == image]
        images.append(
            {key: image if key == "image_id" else f"{STEMS[image]}.jpg",
             boxes: [corners(row["bbox"]) for row in own],
             "scores": [row["score"] for row in own],
             "labels": [row["category_id"] for row in own]}
        )  # fmt: skip
    return images


def by_image(rows):
    return {str(part.pop("image_id")): part for part in of_images(rows)}


def pipeline_by_image(rows):
    changed = each(rows, as_hugging_face)
    return {
        f"{STEMS[image]}.jpg": [
            {key: value for key, value in row.items() if key != "image_id"}
            for row in changed
            if row["image_id"] == image
        ]
        for image in (7, 3)
    }


def arrays_of_images(rows):
    return [
        {key: np.array(value) if isinstance(value, list) else value for key, value in part.items()}
        for part in of_images(rows)
    ]


@pytest.mark.parametrize(
    ("made", "notes"),
    [
        (lambda rows: rows, ""),
        (lambda rows: each(rows, as_ultralytics), "3 by file name ('shot_001.jpg' is image 7)"),
        (lambda rows: each(rows, as_stems), "3 by file stem ('shot_001' is image 7)"),
        (lambda rows: each(rows, as_windows_paths), "3 by file name"),
        (lambda rows: each(rows, as_absolute_paths), "3 by file name"),
        (lambda rows: each(rows, as_other_suffix), "3 by file stem"),
        (lambda rows: each(rows, as_text), "3 by number of image_id ('7' is image 7)"),
        (lambda rows: each(rows, as_text), "Numbers that are written as text are read"),
        (lambda rows: each(rows, as_hugging_face), "Boxes are read from their xmin, ymin, xmax"),
        (lambda rows: each(rows, as_hugging_face), "Classes of 3 rows are matched by name."),
        (lambda rows: each(rows, as_ultralytics_summary), "Boxes are read from their x1, y1"),
        (of_images, "are taken as x1, y1, x2, y2"),
        (lambda rows: of_images(rows, "bboxes", "file_name"), "are taken as x1, y1, x2, y2"),
        (arrays_of_images, "are taken as x1, y1, x2, y2"),
        (by_image, "are taken as x1, y1, x2, y2"),
        (pipeline_by_image, "Classes of 3 rows are matched by name."),
        (lambda rows: {"annotations": rows}, "The results are the list under annotations."),
        (lambda rows: {"info": 1, "predictions": of_images(rows)}, "the list under predictions"),
    ],
)  # fmt: skip
def test_each_form_is_recognised(gt, rows, made, notes):
    content = made(rows)
    before = copy.deepcopy(content)
    found = detections_from(content, gt)
    assert str(content) == str(before)
    assert notes in " ".join(found.notes) and bool(found.notes) == bool(notes)
    order = np.lexsort((found.scores, found.images))
    expected = detections_from(rows, gt)
    wanted = np.lexsort((expected.scores, expected.images))
    for name in ("images", "categories", "scores", "boxes"):
        assert np.array_equal(getattr(found, name)[order], getattr(expected, name)[wanted]), name


def test_boxes_as_corners(gt, rows):
    found = detections_from(
        each(rows, lambda row: row.update(bbox=corners(row["bbox"]))), gt, form="xyxy"
    )
    assert found.boxes.tolist() == [list(box) for box in BOXES]
    assert "Boxes are read as x1, y1, x2, y2." in found.notes


def test_nothing_else_than_coco(gt, rows):
    with pytest.raises(CocoFileError, match=r"\[0\]: expected image_id to be of the 2 images"):
        detections_from(each(rows, as_stems), gt, form="coco")
    assert detections_from(rows, gt, form="coco").notes == ()
    with pytest.raises(ValueError, match="expected a form of auto, coco, xyxy, got 'yolo'"):
        detections_from(rows, gt, form="yolo")


def test_a_way_that_tells_all_images_goes_first():
    """Stems that are numbers may be the ids of other images."""
    content = ground_truth([(1, 1, BOXES[0])], images=(1, 2, 3))
    for image in content["images"]:
        image["file_name"] = f"{image['id'] - 1:06d}.jpg"
    gt = ground_truth_from_coco(content)
    rows = detections([(0, 1, BOXES[0], 0.5), (1, 1, BOXES[0], 0.5), (2, 1, BOXES[0], 0.5)])
    found = detections_from(rows, gt)
    assert found.images.tolist() == [0, 1, 2]
    assert "3 by file stem (0 is image 1)" in found.notes[0]


def test_file_names_are_right_where_ids_disagree(gt, rows):
    def numbered(row):
        row["file_name"] = f"{STEMS[row['image_id']]}.jpg"
        row["image_id"] = {7: 3, 3: 7}[row["image_id"]]

    found = detections_from(each(rows, numbered), gt)
    assert np.array_equal(found.images, detections_from(rows, gt).images)
    assert "In 3 rows, image_id and file name are of different images" in found.notes[1]


def test_a_name_of_two_images_tells_neither(rows):
    content = ground_truth([(7, 1, BOXES[0])], images=(7, 3))
    for image, folder in zip(content["images"], "ab", strict=True):
        image["file_name"] = f"{folder}/1.jpg"
    gt = ground_truth_from_coco(content)
    with pytest.raises(CocoFileError, match=r"\[0\]: expected image_id .*, got '1.jpg'"):
        detections_from(each(rows, lambda row: row.update(image_id="1.jpg")), gt)
    found = detections_from(each(rows, lambda row: row.update(image_id="x/b/1.jpg")), gt)
    assert {gt.image_ids[image] for image in found.images} == {3}


def test_classes_that_the_ground_truth_lacks_are_left_out(gt, rows):
    rows[1]["category_id"], rows[2]["category_id"] = 44, "\x1b[31m"
    found = detections_from(rows, gt)
    assert found.scores.tolist() == [0.5] and found.masks is None
    (note,) = found.notes
    assert note.startswith("2 of 3 rows are of classes that the ground truth lacks, and are left")
    assert note.endswith(": 44, \\x1b[31m.")
    # Rows are counted as in the file.
    rows[2]["score"] = 7
    with pytest.raises(CocoFileError, match=r"detections\[2\]: expected a score"):
        detections_from(rows, gt)


def test_bad_rows_can_be_left_out(gt, rows):
    rows += copy.deepcopy(rows)
    rows[0]["bbox"][2] = -0.01
    rows[1]["image_id"] = 99
    rows[3] = "no row"
    rows[4]["bbox"] = None
    with pytest.raises(CocoFileError):
        detections_from(rows, gt)
    found = detections_from(rows, gt, skip_bad=True)
    assert found.scores.tolist() == [0.75, 0.75]
    (note,) = found.notes
    assert note.startswith("4 of 6 rows cannot be used and are left out: image_id: 2, the first ")
    assert "row 3: expected an object with image_id, got str 'no row'; bbox: 2, the first " in note
    assert "row 4: expected four numbers under bbox, got nothing" in note
    assert detections_from(rows[2:3], gt, skip_bad=True).notes == ()


def test_bad_annotations_can_be_left_out(tmp_path):
    content = ground_truth([(1, 1, BOXES[0]), (2, 9, BOXES[1]), (2, 2, BOXES[1])])
    content["annotations"][0]["area"] = float("nan")
    content["annotations"].append(dict(content["annotations"][2]))
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(CocoFileError, match=r"annotations\[1\]: expected category_id"):
        read_ground_truth(tmp_path / "gt.json")
    gt = read_ground_truth(tmp_path / "gt.json", skip_bad=True)
    assert gt.ids.tolist() == [3]
    assert gt.notes[0].startswith("3 of 4 rows cannot be used and are left out: category_id: 1, ")
    assert "id: 1, the first row 3: expected an id of its own, got 3" in gt.notes[0]
    assert "area: 1, the first row 0: expected a finite area, not negative, got nan" in gt.notes[0]


def test_what_is_not_recognised_keeps_its_message(gt, rows):
    for content, message in (
        ({"a": 1}, "expected a list of detections, got dict"),
        ({"images": [], "annotations": [{"id": 1}]}, "its annotations have no scores"),
        ([{**rows[0], "score": "high"}], r"\[0\]: expected a number under score, got str 'high'"),
        ([{"image_id": 7, "boxes": [[1, 2, 3, 4]], "scores": [], "labels": [1]}],
         "image 7: expected as many scores as boxes, 1, got 0"),
        ([{"image_id": 7, "boxes": []}], "image 7: expected as many scores as boxes, 0, got none"),
    ):  # fmt: skip
        with pytest.raises(CocoFileError, match=message):
            detections_from(content, gt)


def test_compressed_files(gt, rows, tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert len(read_detections(path, gt).scores) == 3
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CocoFileError, match="expected JSON, compressed by gzip: "):
        read_detections(path, gt)


def test_characters_that_cannot_be_shown():
    assert printable("plain, ü, 象") == "plain, ü, 象"
    assert printable("a\ud800\x1b[31m\n\u202e") == "a\\ud800\\x1b[31m\\n\\u202e"
