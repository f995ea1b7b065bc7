"""What a glance finds good is what a second look finds good."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from corrdet.data import glances
from corrdet.data.checks import _check_annotation, _is_in_first_pixel, check_dataset

ODD = [
    {"bbox": None},
    {"bbox": [1, 2, 3]},
    {"bbox": [1, 2, 3, "4"]},
    {"bbox": [1, 2, 3, True]},
    {"bbox": (1, 2, 3, 10**400)},
    {"bbox": np.array([1.0, 2.0, 3.0, 4.0])},
    {"category_id": True},
    {"category_id": np.int64(1)},
    {"category_id": 2.0},
    {"bbox_mode": BoxMode.XYWHA_ABS},
    {"bbox_mode": 1},
]


def records(seed: int, mode=BoxMode.XYWH_ABS) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = []
    for image in range(30):
        boxes = rng.choice(
            [-1.5, -0.5, 0, 0.25, 0.5, 1, 20, 50, 98, 101, 300, np.nan, np.inf],
            (rng.integers(0, 5), 4),
            p=[0.02, 0.02, 0.2, 0.05, 0.05, 0.1, 0.2, 0.2, 0.05, 0.05, 0.02, 0.02, 0.02],
        )
        made.append(
            {
                "file_name": f"{image}.jpg", "height": 100, "width": int(rng.choice([1, 100])),
                "annotations": [
                    {"bbox": box, "bbox_mode": mode, "category_id": int(rng.integers(-1, 4))}
                    for box in boxes.tolist()
                ],
            }
        )  # fmt: skip
    return made


def compare(dicts: list[dict]) -> int:
    """How many are good, each of which is so one by one."""
    found = list(glances.look_at(dicts, 3, _is_in_first_pixel, check_masks=False))
    good = [flag for glance in found for flag in glance.good(False)]
    inside = [flag for glance in found for flag in glance.are_in_first_pixel]
    rows = [(r, a) for r in dicts for a in r.get("annotations") or ()]
    assert len(good) == len(inside) == len(rows)
    for (record, annotation), is_good, is_inside in zip(rows, good, inside, strict=True):
        kind, _, replacement = _check_annotation(annotation, record, 3)
        if is_good:
            assert kind is None and replacement is annotation
        assert is_inside == (record["width"] > 1 and _is_in_first_pixel(annotation))
    assert sum(glance.counted for glance in found) == sum(r["width"] > 1 for r, _ in rows)
    return sum(good)


@pytest.mark.parametrize("mode", [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS])
def test_a_glance_is_as_good_as_a_look(mode):
    assert sum(compare(records(seed, mode)) for seed in range(20)) > 30


@pytest.mark.parametrize("change", ODD, ids=repr)
def test_odd_rows_have_their_neighbours_looked_at(change, monkeypatch):
    monkeypatch.setattr(glances, "IMAGES", 10)
    dicts = records(1)
    dicts[12]["annotations"] = [
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **change}
    ]
    compare(dicts)
    assert compare(dicts[:10])  # others are not


def test_bad_ones_are_found_wherever_they_are(monkeypatch):
    monkeypatch.setattr(glances, "IMAGES", 7)
    good = {"bbox": [1, 2, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dicts = [
        {
            "file_name": f"{i}.jpg",
            "height": 100,
            "width": 100,
            "annotations": [dict(good)] * (i % 3),
        }
        for i in range(40)
    ]
    assert check_dataset("of glances", dicts, num_classes=1) == dicts
    dicts[29]["annotations"] = [good, {**good, "bbox": [1, 2, 0, 4]}]
    with pytest.raises(ValueError, match=r"has 1 bad annotation.*\n.*29\.jpg: annotation 1, box"):
        check_dataset("of glances", dicts, num_classes=1)
    kept = check_dataset("of glances", dicts, num_classes=1, skip_bad_annotations=True)
    assert [len(r["annotations"]) for r in kept] == [1 if i == 29 else i % 3 for i in range(40)]
