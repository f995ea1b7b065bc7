import json

import numpy as np
import pytest
import scipy.stats

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import correlations, inconsistency, measure, rank_correlation, true_positives
from tests.helpers.problems import (
    detections,
    ground_truth,
    pycocotools_evaluation,
    random_problem,
)


def results_of(content, results, iou_type="bbox"):
    gt = ground_truth_from_coco(content, iou_type)
    return measure(gt, detections_from_coco(results, gt, iou_type), iou_type=iou_type)


class TestCorrelations:
    @pytest.mark.parametrize("ties", [True, False])
    def test_are_scipys(self, ties):
        rng = np.random.default_rng(0)
        scores, ious = rng.random((2, 300))
        ious = 0.5 * ious + 0.5 * scores**3
        if ties:
            scores, ious = scores.round(1), ious.round(1)
        pearson, spearman, kendall = correlations(scores, ious)
        assert pearson == pytest.approx(scipy.stats.pearsonr(scores, ious).statistic)
        assert spearman == pytest.approx(scipy.stats.spearmanr(scores, ious).statistic)
        assert kendall == pytest.approx(scipy.stats.kendalltau(scores, ious).statistic)
        assert len({round(value, 3) for value in (pearson, spearman, kendall)}) == 3

    def test_by_hand(self):
        # Of the six pairs of pairs, five agree.
        pearson, spearman, kendall = correlations([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.6, 0.8])
        assert kendall == pytest.approx(4 / 6)
        assert spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
        assert pearson == pytest.approx(0.8)

    @pytest.mark.parametrize("pairs", [([], []), ([0.1], [0.2]), ([0.1, 0.1], [0.2, 0.3])])
    def test_not_defined(self, pairs):
        assert np.isnan(correlations(*pairs)).all()

    def test_are_over_detections_with_an_iou_above_one_half(self):
        # IoUs 0.5, 0.6, 1 (a second time found), 0.8, 0.
        content = ground_truth([(1, 1, (0, 0, 10, 10)), (1, 1, (40, 0, 10, 10))])
        rows = [(1, 1, (0, 0, 10, 5), 0.1), (1, 1, (0, 0, 10, 6), 0.9), (1, 1, (0, 0, 10, 10), 0.2),
                (1, 1, (40, 0, 10, 8), 0.4), (1, 1, (90, 0, 9, 9), 0.8)]  # fmt: skip
        results = results_of(content, detections(rows))
        expected = scipy.stats.pearsonr([0.9, 0.2, 0.4], [0.6, 1, 0.8]).statistic
        assert results.measures["PCC"] == pytest.approx(100 * expected)
        assert results.measures["SCC"] == pytest.approx(-100)
        assert results.measures["KCC"] == pytest.approx(-100)
        assert results.measures["correlated-detections"] == 3
        assert results.per_class["SCC"][0] == pytest.approx(-100)
        assert np.isnan(results.per_class["SCC"][1])


def test_inconsistency_by_hand():
    assert inconsistency([0.9, 0.2], [0.5, 0.8]) == pytest.approx((1.0, 0.5))
    total, mean = inconsistency([], [])
    assert total == 0 and np.isnan(mean)


@pytest.mark.parametrize("seed", range(6))
def test_beta_cls_is_that_of_pycocotools_matches(seed):
    content, results = random_problem(seed, images=20)
    evaluation = pycocotools_evaluation(content, results)
    expected = [rank_correlation(*pair) for pair in true_positives(evaluation).values()]
    ours = results_of(content, results)
    expected = np.array([np.nan if rho is None else rho for rho in expected])
    assert np.allclose(ours.per_class["beta_cls"], 100 * expected, equal_nan=True)
    assert ours.measures["beta_cls"] == pytest.approx(100 * np.nanmean(expected))
    assert ours.measures["beta_cls-classes"] == np.isfinite(expected).sum() >= 2


def test_counts_of_classes():
    content, results = random_problem(0)
    ours = results_of(content, results)
    ids = ours.ground_truth.category_ids
    assert ids == [1, 4, 5, 9]
    for row, category in enumerate(ids):
        class_annotations = [a for a in content["annotations"] if a["category_id"] == category]
        assert ours.per_class["ground_truths"][row] == sum(
            not a["iscrowd"] for a in class_annotations
        )
    left_out = len(results) - ours.per_class["detections"].sum()
    assert ours.num_left_out == left_out > 0
    assert ours.boxes.tolist() == [results[row]["bbox"] for row in ours.matches.detections]


def test_the_mean_over_classes_leaves_out_what_is_not_defined():
    content = ground_truth([(1, 1, (0, 0, 10, 10))], categories=(1, 2))
    results = results_of(
        content, detections([(1, 1, (0, 0, 10, 10), 0.9), (1, 2, (0, 0, 9, 9), 1)])
    )
    assert results.measures["AP"] == pytest.approx(100)
    assert np.isnan(results.per_class["AP"][1])
    assert np.isnan(results.measures["beta_cls"]) and results.measures["beta_cls-classes"] == 0


def test_without_detections():
    results = results_of(ground_truth([(1, 1, (0, 0, 10, 10))]), [])
    assert results.measures["AP"] == results.measures["AR100"] == results.measures["AP_upper"] == 0
    assert results.measures["oLRP"] == results.measures["oLRP_FN"] == 100
    assert np.isnan(results.measures["PCC"])


def test_without_ground_truth_nothing_is_defined():
    results = results_of(ground_truth([]), detections([(1, 1, (0, 0, 10, 10), 0.9)]))
    counts = {"beta_cls-classes": 0, "correlated-detections": 0}
    for name, value in results.measures.items():
        assert value == counts[name] if name in counts else np.isnan(value), name


def test_a_record_is_json():
    content, results = random_problem(0)
    for category in content["categories"][:2]:
        category["name"] = "twin"
    ours = results_of(content, results)
    record = json.loads(json.dumps(ours.as_dict(), allow_nan=False))
    assert list(record["per_class"]) == ["twin (1)", "class 4", "twin (5)", "class 9"]
    assert record["per_class"]["class 4"]["AP"] is None
    assert record["AP"] == ours.measures["AP"]
    assert record["per_class"]["class 9"]["oLRP"] == ours.per_class["oLRP"][3]


def test_masks_are_not_boxes():
    content, results = random_problem(3, images=6, masks=True)
    masks = results_of(content, results, "segm")
    with_boxes = [
        {**row, "bbox": box.tolist()}
        for row, box in zip(results, masks.detections.boxes, strict=True)
    ]
    boxes = results_of(content, with_boxes)
    assert masks.iou_type == "segm" and masks.measures["AP"] > 1
    assert masks.measures["oLRP_Loc"] != pytest.approx(boxes.measures["oLRP_Loc"], abs=0.1)
