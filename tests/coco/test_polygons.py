"""Polygons as arrays, and what is told of all at once: the same as of one after the other."""

import json

import numpy as np
import pytest

from corrdet.coco import mask_problem
from corrdet.coco.checking import have_no_problem
from corrdet.coco.masks import MaskError, are_drawable, encode
from corrdet.coco.polygons import Outlines, is_packed, pack

SQUARE = [10, 10, 20, 10, 20.5, 20, 10, 20]


def parse(segmentation):
    return json.loads(json.dumps({"segmentation": segmentation}), object_hook=pack)["segmentation"]


def test_polygons_become_arrays():
    first, second = parse([SQUARE, [1, 2, 3, 4, 5, 6]])
    assert first.dtype == second.dtype == np.float64 and first.tolist() == SQUARE
    assert is_packed([first, second]) and not is_packed([]) and not is_packed([first, SQUARE])


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, True]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, 10**400]],
        [[[1, 2], [3, 4], [5, 6], [7, 8], [1, 2], [3, 4]]],
        {"counts": [1, 2, 3, 4, 5, 6], "size": [3, 7]},
        [],
        SQUARE,
        None,
        "text of six",
    ],
)
def test_whatever_else_stands_there_stays(segmentation):
    parsed = parse(segmentation)
    assert parsed == segmentation and not is_packed(parsed)


def masks():
    """Packed ones of all kinds, and the sizes of their images."""
    rng = np.random.default_rng(0)
    given = [
        [SQUARE],
        [[*SQUARE[:6], float("nan"), 1]],
        [[*SQUARE[:6], float("inf"), 1]],
        [[100 + x for x in SQUARE]],
        [[100 + x for x in SQUARE], SQUARE],
        [[x - 21 for x in SQUARE]],
        [[1, 1, 5, 5, 9, 9]],  # without area
        [[0, 0, 10, 10, 10, 0, 0, 10]],  # runs around two halves on either side
        [[5, 5, 5.5, 5, 5.5, 5.5]],
        [[1, 1, 5000, 1, 1, 5]],
        [[0, 0, 900, 900] * 3000],  # longer than what is drawn
    ]
    for _ in range(200):
        number = rng.integers(1, 4)
        scale = rng.choice([0.3, 2, 50, 400])
        shift = rng.uniform(-60, 120, 2)
        given.append(
            [
                (rng.normal(size=(rng.integers(3, 9), 2)) * scale + shift).ravel().tolist()
                for _ in range(number)
            ]
        )
    return [parse(mask) for mask in given], [(100, 80)] * len(given)


def test_what_has_no_problem_has_none():
    given, sizes = masks()
    good = have_no_problem(given, sizes)
    for mask, size, is_good in zip(given, sizes, good, strict=True):
        # What is told of one by one besides has less than a pixel, or crosses itself.
        assert not (is_good and mask_problem(mask, *size)), mask
    assert good.sum() > 60 and not good[1:4].any() and good[4] and not good[5:9].any()
    assert have_no_problem(
        [given[0], None, {"size": [1, 1], "counts": "1"}], sizes[:3]
    ).tolist() == [
        True,
        False,
        False,
    ]


def test_what_is_drawable_is_what_is_drawn():
    given, sizes = masks()
    drawable = are_drawable(Outlines(given), np.array(sizes))
    for mask, size, is_drawable in zip(given, sizes, drawable, strict=True):
        try:
            encode(0, mask, size)
            is_drawn = True
        except MaskError:
            is_drawn = False
        assert is_drawn == is_drawable, mask
    assert 0 < drawable.sum() < len(given) and not drawable[[1, 2, 9, 10]].any()
    assert not are_drawable(Outlines(given[:1]), np.array([[0, 0]])).any()
