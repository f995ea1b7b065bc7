"""Calibration errors, against their definitions written as loops."""

import numpy as np
import pytest

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import calibration, measure
from tests.helpers.problems import detections, ground_truth, random_problem

BOX = (10, 10, 50, 50)


def results_of(content, rows):
    gt = ground_truth_from_coco(content)
    return measure(gt, detections_from_coco(rows, gt))


def expected_error(pairs):
    total = 0.0
    for index in range(25):
        low, high = index / 25, (index + 1) / 25
        inside = [p for p in pairs if low < p[0] <= high or (index == 0 and p[0] == 0)]
        if inside:
            total += abs(sum(s - t for s, t in inside))
    return 100 * total / len(pairs)


def test_by_hand():
    # IoUs of 0.8, 0.2 and 0, the last of which touches nothing.
    content = ground_truth([(1, 1, BOX), (2, 1, BOX)], categories=(1,))
    rows = detections(
        [
            (1, 1, (10, 10, 50, 40), 0.9),
            (2, 1, (10, 10, 50, 10), 0.7),
            (1, 1, (150, 150, 9, 9), 0.5),
        ]
    )
    found = calibration(results_of(content, rows))
    assert found.errors["LaECE_0"] == pytest.approx(100 * (0.1 + 0.5 + 0.5) / 3)
    assert found.errors["LaACE_0"] == pytest.approx(100 * (0.1 + 0.5 + 0.5) / 3)
    assert found.errors["D-ECE"] == pytest.approx(100 * (0.1 + 0.7 + 0.5) / 3)
    assert found.counts[[12, 17, 22]].tolist() == [1, 1, 1] and found.counts.sum() == 3


def test_what_touches_nothing_takes_no_object():
    content = ground_truth([(1, 1, BOX)], categories=(1,))
    rows = detections([(1, 1, (150, 150, 9, 9), 0.9), (1, 1, BOX, 0.4)])
    assert calibration(results_of(content, rows)).errors["LaACE_0"] == pytest.approx(75)


@pytest.mark.parametrize("seed", range(3))
def test_bins_are_those_of_the_definition(seed):
    content, rows = random_problem(seed)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    results = results_of(content, rows)
    matches = results.matches
    is_true = matches.true_positives[0, 0].astype(float)
    errors = calibration(results).errors
    pairs = list(zip(matches.scores.tolist(), is_true.tolist(), strict=True))
    assert errors["D-ECE"] == pytest.approx(expected_error(pairs))
    assert errors["beta_cls"] == pytest.approx(results.measures["beta_cls"])
    assert errors["LaECE_0"] <= errors["LaACE_0"] + 1e-9


def test_isotonic_regression_mends_calibration_and_leaves_agreement():
    """Scores that rank boxes perfectly and mean nothing."""
    rng = np.random.default_rng(0)
    images = range(1, 201)
    content = ground_truth([(i, 1, BOX) for i in images], images, (1,))
    rows = []
    for image in images:
        width = float(rng.uniform(26, 50))  # an IoU of width / 50
        rows.append((image, 1, (10, 10, width, 50), (width / 50) ** 8))
    found = calibration(results_of(content, detections(rows)))
    assert found.errors["LaECE_0"] > 30 and found.calibrated["LaECE_0"] < 3
    assert found.errors["beta_cls"] == pytest.approx(100)
    assert found.calibrated["beta_cls"] > 99


def test_nothing_to_calibrate():
    found = calibration(results_of(ground_truth([(1, 1, BOX)]), []))
    assert all(np.isnan(value) for value in found.errors.values())
    one = ground_truth([(1, 1, BOX)], images=(1,))
    assert calibration(results_of(one, detections([(1, 1, BOX, 0.5)]))).calibrated is None
