"""Types of errors and their costs, by hand and as tidecv 1.0.1 has them."""

import numpy as np
import pytest

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import bootstrap, errors_by_type, measure
from corrdet.measures.bootstrap import cost_name
from corrdet.measures.errors_by_type import CORRECT, TYPES, CostOfErrors
from tests.helpers.problems import detections, ground_truth, random_problem

BOX, FAR = (10, 10, 50, 50), (120, 120, 40, 40)
# Of random_problem(seed, images=12, ties=False, masks=masks).
BY_TIDECV = {
    (1, False): {"Cls": 0.6262, "Loc": 0.2406, "Both": 1.69, "Dupe": 5.1669, "Bkg": 12.7017,
                 "Miss": 7.5449, "FP": 34.9057, "FN": 8.3913},
    (6, False): {"Cls": 1.0216, "Loc": 5.9303, "Both": 1.3155, "Dupe": 5.1767, "Bkg": 3.6403,
                 "Miss": 4.5305, "FP": 30.0558, "FN": 5.2571},
    (3, True): {"Cls": 0.2669, "Loc": 0.5776, "Both": 0.0863, "Dupe": 4.9364, "Bkg": 6.7532,
                "Miss": 17.5255, "FP": 10.5161, "FN": 26.9989},
}  # fmt: skip


def problem(seed, masks=False):
    content, rows = random_problem(seed, images=12, ties=False, masks=masks)
    iou_type = "segm" if masks else "bbox"
    gt = ground_truth_from_coco(content, iou_type)
    return gt, detections_from_coco(rows, gt, iou_type)


@pytest.mark.parametrize(("seed", "masks"), BY_TIDECV)
def test_costs_are_those_of_tidecv(seed, masks):
    errors = errors_by_type(*problem(seed, masks))
    assert errors.cost == pytest.approx(BY_TIDECV[seed, masks], abs=1e-4)


def by_hand(annotations, rows):
    gt = ground_truth_from_coco(ground_truth(annotations))
    errors = errors_by_type(gt, detections_from_coco(detections(rows), gt))
    names = (*TYPES, "correct")
    found = {int(row): names[place] for row, place in zip(errors.detections, errors.types,
                                                          strict=True)}  # fmt: skip
    return [found.get(row) for row in range(len(rows))], errors


def test_each_type():
    half = (10, 10, 50, 20)  # an IoU of 0.4
    types, errors = by_hand(
        [(1, 1, BOX), (1, 2, FAR), (2, 1, BOX), (2, 1, FAR)],
        [
            (1, 1, BOX, 0.9),
            (1, 1, (10, 10, 50, 48), 0.8),
            (1, 1, half, 0.7),
            (1, 2, half, 0.6),
            (1, 1, (60, 60, 9, 9), 0.5),
            (1, 1, FAR, 0.4),
            (2, 1, half, 0.3),
        ],
    )
    assert types == ["correct", "Dupe", "Loc", "Both", "Bkg", "Cls", "Loc"]
    assert errors.counts == {
        "Cls": 1, "Loc": 2, "Both": 1, "Dupe": 1, "Bkg": 1, "Miss": 1, "FP": 6, "FN": 3,
    }  # fmt: skip
    # The second of class 1 in image 2 alone: a better class or place would find the others.
    assert errors.missed.tolist() == [False, False, False, True]
    assert errors.found.tolist() == [True, False, False, False]


def test_only_the_best_of_several_is_mended():
    types, errors = by_hand(
        [(1, 1, BOX)], [(1, 1, (10, 10, 50, 20), 0.5), (1, 2, BOX, 0.9), (1, 2, BOX, 0.8)]
    )
    assert types == ["Loc", "Cls", "Cls"]
    best = {int(row) for row in errors.detections[errors.mended]}
    assert best == {1}
    # Of class 2 there is no object: its detections are gone, and with them the class.
    assert errors.cost["Cls"] == pytest.approx(100) and errors.cost["Loc"] == 0


def test_what_lies_in_a_crowd_is_no_error():
    types, errors = by_hand([(1, 1, BOX), (1, 1, FAR, 1)], [(1, 1, (125, 125, 20, 20), 0.9)])
    assert types == ["Bkg"] and errors.ignored.tolist() == [True] and errors.counts["FP"] == 0
    assert errors.cost["Bkg"] == 0 and errors.counts["Miss"] == 1


def test_the_100_best_of_an_image_count():
    rows = [(1, 1 + k % 2, FAR, 0.5 + k / 1000) for k in range(150)]
    _, errors = by_hand([(1, 1, BOX)], rows)
    assert len(errors.detections) == 100


def test_nothing_found_is_all_missed():
    _, errors = by_hand([(1, 1, BOX)], [])
    assert errors.counts["Miss"] == 1 and errors.counts["FP"] == 0


def test_costs_of_a_sample_are_those_of_its_images():
    gt, found = problem(1)
    errors = errors_by_type(gt, found)
    counts = np.arange(len(gt.image_ids)) % 3
    sampled = CostOfErrors(gt, found, errors).costs(counts.astype(float))
    content, rows = random_problem(1, images=12, ties=False)
    images = sorted(content["images"], key=lambda image: image["id"])
    repeated = {"images": [], "annotations": [], "categories": content["categories"]}
    new_rows = []
    for image, count in zip(images, counts, strict=True):
        for copy in range(count):
            identity = image["id"] + 1000 * copy
            repeated["images"].append({**image, "id": identity})
            repeated["annotations"] += [
                {**a, "image_id": identity, "id": len(repeated["annotations"]) + k}
                for k, a in enumerate(content["annotations"], 1)
                if a["image_id"] == image["id"]
            ]
            new_rows += [
                {**row, "image_id": identity} for row in rows if row["image_id"] == image["id"]
            ]
    for number, annotation in enumerate(repeated["annotations"], 1):
        annotation["id"] = number
    again = ground_truth_from_coco(repeated)
    expected = errors_by_type(again, detections_from_coco(new_rows, again)).cost
    assert sampled == pytest.approx(expected, abs=1e-9)


def test_costs_have_intervals():
    gt, found = problem(1)
    results = measure(gt, found)
    samples = bootstrap([results, results], 20)
    assert results.errors.types[0] in range(CORRECT + 1)
    for name in (*TYPES, "FP", "FN"):
        low, high = samples.interval(cost_name(name), 0)
        assert low <= results.errors.cost[name] <= high or np.isclose(low, high)
        assert samples.difference(cost_name(name), 1) == (0, 0)
