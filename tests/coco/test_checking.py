import json

import pytest

from corrdet.coco import CocoFileError, check_coco_file, polygon_problems, read

WIDTH, HEIGHT = 100, 50


def coco_content() -> dict:
    return {
        "categories": [{"id": 1, "name": "ball"}, {"id": 3, "name": "box"}],
        "images": [{"id": 7, "file_name": "7.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in (11, 12)
        ],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda content: content["annotations"][1].update(category_id=9),
            "7.jpg: annotation id 12: category_id 9 is not among the categories: 1 (ball), 3 (box)",
        ),
        (
            lambda content: content["annotations"][1].update(bbox=None),
            "7.jpg: annotation id 12: bbox is nothing, expected [x, y, width, height]",
        ),
        (
            lambda content: content["annotations"][1].pop("bbox"),
            "7.jpg: annotation id 12: bbox is nothing, expected [x, y, width, height]",
        ),
        (
            lambda content: content["annotations"][1].update(id=11),
            "7.jpg: annotation id 11: another annotation has the same id",
        ),
        (lambda content: content["annotations"][1].pop("id"), "annotation number 1: has no id"),
        *(
            (
                lambda content, bad=bad: content["annotations"][1].update(segmentation=bad),
                "7.jpg: annotation id 12: its mask is neither polygons nor COCO's run-length",
            )
            for bad in (
                [1, 1, 5, 1, 5, 5],
                {"size": [50, 100], "counts": [5, -10, 5005]},
                {"size": 50, "counts": [5000]},
                {"counts": [5000]},
                {"counts": "text"},
                7,
            )
        ),
        (
            lambda content: content["images"][0].pop("file_name"),
            "image id 7: has no file_name",
        ),
        (lambda content: content.pop("images"), "expected a list 'images', got nothing"),
        (lambda content: content["categories"].clear(), "has no categories"),
    ],
)
def test_bad_coco_files_are_explained(change, words, tmp_path):
    path = tmp_path / "things.json"
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    path.write_text(json.dumps(content))
    check_coco_file(read(path))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CocoFileError) as caught:
        check_coco_file(read(path))
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_truncated_coco_file_is_explained(tmp_path):
    path = tmp_path / "things.json"
    path.write_text(json.dumps(coco_content())[:-20])
    with pytest.raises(CocoFileError, match="things.json: expected JSON, it may be incompl"):
        check_coco_file(read(path))


def test_the_first_ten_errors_of_a_coco_file_are_listed(tmp_path):
    content = coco_content()
    content["annotations"] = [{"id": n, "image_id": 7, "category_id": 2} for n in range(7)]
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CocoFileError, match=r"has 14 error\(s\)(.|\n)* and 4 more"):
        check_coco_file(read(path))


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ([[1, 1, 5, 1, 5, 5], [1, 1, 5, 5]], "has 4 coordinates"),
        ([[1, 1, 5, 1, 5, 5, 7]], "has 7 coordinates"),
        ([[]], "has 0 coordinates"),
        ("a mask", "neither polygons nor"),
    ],
)
def test_polygons_that_the_loader_leaves_out(polygons, reason, tmp_path):
    path = tmp_path / "things.json"
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    path.write_text(json.dumps(content))
    assert polygon_problems(read(path)) == []
    content["annotations"][1]["segmentation"] = polygons
    content["annotations"].append({**content["annotations"][1], "id": 13, "image_id": 8})
    path.write_text(json.dumps(content))
    (problem,) = polygon_problems(read(path))
    assert problem.startswith("7.jpg: annotation id 12: ") and reason in problem
