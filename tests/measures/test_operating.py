import numpy as np
import pytest

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import confusion, measure, operating_points
from corrdet.measures.operating import GRID
from tests.helpers.problems import detections, ground_truth, random_problem

BOX, FAR = (10, 10, 50, 50), (120, 120, 40, 40)


def results_of(content, rows):
    gt = ground_truth_from_coco(content)
    return measure(gt, detections_from_coco(rows, gt))


@pytest.mark.parametrize("seed", range(3))
def test_every_threshold_is_counted_by_hand(seed):
    results = results_of(*random_problem(seed))
    matches, points = results.matches, operating_points(results)
    counted = ~matches.ignored[0, 0]
    num_gt = matches.num_gt[0].sum()

    def by_hand(threshold, rows):
        kept = counted & (matches.scores >= threshold) & rows
        tp = (matches.true_positives[0, 0] & kept).sum()
        fp, fn = kept.sum() - tp, num_of(rows) - tp
        loc = (1 - matches.ious[kept & matches.true_positives[0, 0]]).sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.array([100 * tp / (tp + fp), 100 * tp / (tp + fn),
                             200 * tp / (2 * tp + fp + fn),
                             100 * (2 * loc + fp + fn) / (tp + fp + fn)])  # fmt: skip

    def num_of(rows):
        return num_gt if rows.all() else matches.num_gt[0, matches.categories[rows][0]]

    everything = np.ones(len(counted), bool)
    expected = np.array([by_hand(threshold, everything) for threshold in GRID]).T
    assert np.array(list(points.curves.values())) == pytest.approx(expected, nan_ok=True)
    for name, place, pick in (("best_f1", 2, max), ("best_lrp", 3, min)):
        best = getattr(points, name)
        values = [by_hand(t, everything)[place] for t in np.unique(matches.scores[counted])]
        found = (best.precision, best.recall, best.f1, best.lrp)
        assert found[place] == pytest.approx(pick(values))
        assert found == pytest.approx(tuple(by_hand(best.threshold, everything)))
    for category, best in enumerate(points.per_class_f1):
        rows = matches.categories == category
        if not matches.num_gt[0, category]:
            assert best is None
            continue
        values = [by_hand(t, rows)[2] for t in np.unique(matches.scores[rows & counted])]
        assert best.f1 == pytest.approx(max(values))


def test_nothing_to_cut_off():
    points = operating_points(results_of(ground_truth([(1, 1, BOX)]), []))
    assert points.best_f1 is points.best_lrp is None and points.per_class_f1 == [None, None]
    assert np.isnan(points.curves["precision"]).all() and (points.curves["recall"] == 0).all()


class TestConfusion:
    def test_counts(self):
        content = ground_truth(
            [(1, 1, BOX), (1, 2, FAR), (2, 1, BOX), (2, 2, FAR), (2, 2, (0, 100, 90, 90), 1)]
        )
        rows = detections(
            [
                (1, 1, BOX, 0.9),
                (1, 2, BOX, 0.95),  # takes the object from the one of its class
                (1, 1, FAR, 0.8),
                (2, 1, FAR, 0.7),
                (2, 2, (10, 110, 20, 20), 0.9),  # in the crowd
                (2, 1, BOX, 0.1),
            ]
        )
        found = confusion(results_of(content, rows), 0.5)
        assert found.counts == {(0, 1): 1, (0, 2): 1, (1, 0): 2, (2, 0): 1}
        kinds = "right", "confused", "background", "missed"
        assert [found.total(kind) for kind in kinds] == [0, 3, 1, 1]
        assert found.pairs() == [(1, 0, 2), (0, 1, 1)]

    def test_of_equal_ious_the_object_of_the_class(self):
        content = ground_truth([(1, 1, BOX), (1, 2, BOX)])
        found = confusion(results_of(content, detections([(1, 1, BOX, 0.9), (1, 2, BOX, 0.8)])))
        assert found.counts == {(0, 0): 1, (1, 1): 1} and found.pairs() == []
        assert found.threshold == 0.8

    def test_without_detections_all_are_missed(self):
        found = confusion(results_of(ground_truth([(1, 1, BOX)]), []))
        assert found.counts == {(0, 2): 1}
