import contextlib
import io

import numpy as np
import pytest
import scipy.stats
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from corrdet.measures import rank_correlation, true_positives


def evaluate(annotations, detections, images=(1, 2), categories=(1, 2)):
    """annotations: (image, category, xywh, crowd); detections: (image, category, xywh, score)."""
    gt = COCO()
    gt.dataset = {
        "info": {},
        "images": [{"id": i, "width": 100, "height": 100} for i in images],
        "categories": [{"id": c, "name": str(c)} for c in categories],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd,
             "area": box[2] * box[3]}
            for n, (i, c, box, crowd) in enumerate(annotations, 1)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        results = gt.loadRes(
            [
                {"image_id": i, "category_id": c, "bbox": box, "score": score}
                for i, c, box, score in detections
            ]
        )
        coco_eval = COCOeval(gt, results, "bbox")
        coco_eval.evaluate()
    return coco_eval


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 10, 50) / 10  # with ties
    ious = scores + rng.normal(size=50)
    expected = scipy.stats.spearmanr(scores, ious)[0]
    assert rank_correlation(scores, ious) == pytest.approx(expected)


@pytest.mark.parametrize("scores, ious", [([], []), ([1], [1]), ([1, 1], [0, 1]), ([0, 1], [1, 1])])
def test_rank_correlation_that_is_not_defined(scores, ious):
    assert rank_correlation(np.array(scores), np.array(ious)) is None


def test_true_positives_by_hand():
    square = [10.0, 10, 10, 10]
    coco_eval = evaluate(
        annotations=[
            (1, 1, [50.0, 50, 10, 10], 1),  # a crowd first: matching moves it to the end
            (1, 1, square, 0),
            (1, 1, [30.0, 10, 10, 10], 0),
            (2, 1, square, 0),
            (2, 2, [10.0, 10, 40, 40], 0),
            (2, 2, [10.0, 14, 40, 40], 0),
        ],
        detections=[
            (1, 1, [10.0, 10, 10, 8], 0.9),  # IoU 0.8
            (1, 1, [30.0, 10, 10, 6], 0.7),  # IoU 0.6
            (1, 1, [30.0, 10, 10, 9], 0.4),  # taken already: a false positive
            (1, 1, [50.0, 50, 5, 5], 0.95),  # inside the crowd: ignored
            (2, 1, [10.0, 10, 10, 4], 0.8),  # IoU 0.4: a false positive
            (2, 2, [10.0, 10, 40, 40], 0.3),
            (2, 2, [10.0, 11, 40, 40], 0.2),  # the one it overlaps most is taken: IoU 37 / 43
        ],
    )
    scores, ious = true_positives(coco_eval)[1]
    assert scores.tolist() == [0.9, 0.7]
    assert ious.tolist() == pytest.approx([0.8, 0.6])
    scores, ious = true_positives(coco_eval)[2]
    assert scores.tolist() == [0.3, 0.2]
    assert ious.tolist() == pytest.approx([1, 37 / 43])


def test_classes_without_true_positives_are_empty():
    coco_eval = evaluate([(1, 1, [0.0, 0, 10, 10], 0)], [(1, 1, [50.0, 50, 10, 10], 0.5)])
    assert all(len(scores) == len(ious) == 0 for scores, ious in true_positives(coco_eval).values())
    assert set(true_positives(coco_eval)) == {1, 2}


def test_only_the_hundred_best_detections_count():
    coco_eval = evaluate(
        [(1, 1, [10.0, 10, 10, 10], 0)],
        [(1, 1, [60.0, 60, 10, 10], 0.9)] * 100 + [(1, 1, [10.0, 10, 10, 10], 0.1)],
    )
    assert len(true_positives(coco_eval)[1][0]) == 0


def test_a_threshold_of_one_half_is_needed():
    coco_eval = evaluate([(1, 1, [0.0, 0, 10, 10], 0)], [(1, 1, [0.0, 0, 10, 10], 0.5)])
    coco_eval.params.iouThrs = np.array([0.75])
    with pytest.raises(ValueError, match="expected an IoU threshold of 0.5"):
        true_positives(coco_eval)
