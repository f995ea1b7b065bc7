import numpy as np
import pytest
from pycocotools import mask as mask_utils

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import matching
from corrdet.measures.matching import AREA_RANGES, IOU_THRESHOLDS, box_ious, match
from tests.helpers.problems import (
    detections,
    ground_truth,
    pycocotools_evaluation,
    random_problem,
)


def matches_of(content, results, iou_type="bbox"):
    gt = ground_truth_from_coco(content, iou_type)
    return gt, match(gt, detections_from_coco(results, gt, iou_type))


def assert_matched_as_pycocotools(content, results, iou_type="bbox"):
    """Every flag and matched id, of every detection, threshold and area."""
    evaluation = pycocotools_evaluation(content, results, iou_type)
    gt, matches = matches_of(content, results, iou_type)
    assert np.array_equal(evaluation.params.iouThrs, IOU_THRESHOLDS)
    assert evaluation.params.areaRng == [list(map(float, r)) for r in AREA_RANGES.values()]
    # Detections are numbered from 1 in the order of the results file.
    place = {row + 1: index for index, row in enumerate(matches.detections.tolist())}
    seen = 0
    for entry in evaluation.evalImgs:
        if entry is None:
            continue
        area = evaluation.params.areaRng.index(entry["aRng"])
        places = [place[number] for number in entry["dtIds"]]
        seen += len(places) * (area == 0)
        is_matched, ignored = entry["dtMatches"] > 0, entry["dtIgnore"].astype(bool)
        assert np.array_equal(matches.true_positives[area][:, places], is_matched & ~ignored)
        assert np.array_equal(matches.ignored[area][:, places], ignored)
        assert matches.scores[places].tolist() == entry["dtScores"]
        if area == 0:
            rows = matches.matched[:, places]
            ids = np.where(rows >= 0, gt.ids[np.maximum(rows, 0)] if len(gt.ids) else 0, 0)
            assert np.array_equal(ids, entry["dtMatches"])
            all_ious = evaluation.ious[entry["image_id"], entry["category_id"]]
            group_gts = evaluation._gts[entry["image_id"], entry["category_id"]]
            for row, index in enumerate(places):
                counted = [
                    iou for iou, g in zip(all_ious[row], group_gts, strict=True) if not g["iscrowd"]
                ] if len(group_gts) else []  # fmt: skip
                assert matches.best_ious[index] == max(counted, default=0)
                if ids[0, row]:
                    column = [g["id"] for g in group_gts].index(ids[0, row])
                    assert matches.ious[index] == all_ious[row][column]
    assert seen == len(matches.scores)


@pytest.mark.parametrize("seed", range(12))
def test_matches_are_pycocotools(seed):
    assert_matched_as_pycocotools(*random_problem(seed))


@pytest.mark.parametrize("seed", range(3))
def test_matches_of_masks_are_pycocotools(seed):
    assert_matched_as_pycocotools(*random_problem(seed, images=6, masks=True), "segm")


def test_the_random_problems_have_what_can_go_wrong():
    crowds = ignored = left_out = 0
    for seed in range(12):
        content, results = random_problem(seed)
        gt, matches = matches_of(content, results)
        crowds += (matches.matched[0][matches.ignored[0, 0]] >= 0).sum()
        ignored += (matches.ignored[1:] & ~matches.ignored[0]).sum()
        left_out += len(results) - len(matches.scores)
        assert (matches.num_gt[0] == 0).any()
    assert crowds > 100 and ignored > 1000 and left_out > 100


def test_pairs_in_small_parts_give_the_same(monkeypatch):
    content, results = random_problem(0)
    _, whole = matches_of(content, results)
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 7)
    _, parts = matches_of(content, results)
    for name in ("true_positives", "ignored", "matched", "best_ious", "ious"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    content, results = random_problem(0, images=6, masks=True)
    _, parts = matches_of(content, results, "segm")
    monkeypatch.undo()
    _, whole = matches_of(content, results, "segm")
    assert np.array_equal(whole.best_ious, parts.best_ious)


def test_box_ious_are_pycocotools_bit_for_bit():
    rng = np.random.default_rng(0)
    boxes, others = rng.uniform(0, 50, (2, 2000, 4))
    boxes[:50, 2:] = 0  # no area
    others[50:100] = boxes[50:100]  # equal
    others[100:150, 0] = boxes[100:150, 0] + boxes[100:150, 2]  # they touch
    for is_crowd in (0, 1):
        expected = [
            mask_utils.iou([box], [other], [is_crowd])[0, 0]
            for box, other in zip(boxes.tolist(), others.tolist(), strict=True)
        ]
        found = box_ious(boxes, others, np.full(2000, bool(is_crowd)))
        assert found.tolist() == expected


class TestByHand:
    def flags(self, annotations, rows):
        _, matches = matches_of(ground_truth(annotations), detections(rows))
        return matches.true_positives[0, 0].tolist(), matches.ignored[0, 0].tolist(), matches

    def test_an_object_is_found_once_by_the_best_score(self):
        is_true, ignored, matches = self.flags(
            [(1, 1, (0, 0, 10, 10))],
            [(1, 1, (0, 0, 10, 10), 0.5), (1, 1, (0, 0, 10, 8), 0.9), (2, 1, (0, 0, 9, 9), 0.7)],
        )
        assert matches.detections.tolist() == [1, 2, 0]
        assert is_true == [True, False, False] and not any(ignored)
        assert matches.ious.tolist() == [0.8, 0, 0]
        assert matches.best_ious.tolist() == [0.8, 0, 1]
        # At 0.85 the box of 0.8 is no longer good enough, and leaves the object to the other.
        assert matches.matched[:, 2].tolist() == [-1] * 7 + [0] * 3

    def test_a_crowd_takes_any_number_and_none_counts(self):
        is_true, ignored, _ = self.flags(
            [(1, 1, (0, 0, 100, 100), 1)],
            [
                (1, 1, (0, 0, 10, 10), 0.9),
                (1, 1, (50, 50, 10, 10), 0.8),
                (1, 1, (150, 0, 9, 9), 0.7),
            ],
        )
        assert is_true == [False] * 3 and ignored == [True, True, False]

    def test_an_object_goes_before_a_crowd_that_overlaps_more(self):
        is_true, ignored, _ = self.flags(
            [(1, 1, (0, 0, 100, 100), 1), (1, 1, (0, 0, 10, 10))], [(1, 1, (0, 0, 10, 6), 0.9)]
        )
        assert is_true == [True] and ignored == [False]

    def test_of_equal_ious_the_later_object_is_taken(self):
        *_, matches = self.flags([(1, 1, (0, 0, 10, 10))] * 2, [(1, 1, (0, 0, 10, 10), 0.9)])
        assert matches.matched[0].tolist() == [1]

    def test_classes_are_apart(self):
        is_true, *_ = self.flags([(1, 1, (0, 0, 10, 10))], [(1, 2, (0, 0, 10, 10), 0.9)])
        assert is_true == [False]


@pytest.mark.parametrize("annotations", [[], [(1, 1, (0, 0, 10, 10))]])
def test_no_detections(annotations):
    _, matches = matches_of(ground_truth(annotations), [])
    assert matches.true_positives.shape == (4, 10, 0) and len(matches.best_ious) == 0
    assert matches.num_gt[0].tolist() == [len(annotations), 0]


def test_no_ground_truth():
    rows = [(1, 1, (0, 0, 10, 10), 0.9)]
    _, matches = matches_of(ground_truth([]), detections(rows))
    assert not matches.true_positives.any() and not matches.ignored[0].any()


def test_an_annotation_of_id_0_can_be_found():
    content = ground_truth([(1, 1, (0, 0, 10, 10))])
    content["annotations"][0]["id"] = 0
    _, matches = matches_of(content, detections([(1, 1, (0, 0, 10, 10), 0.9)]))
    assert matches.true_positives[0].all()
