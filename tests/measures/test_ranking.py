import numpy as np
import pytest

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import match, measure
from corrdet.measures.matching import IOU_THRESHOLDS
from corrdet.measures.ranking import (
    LRP_THRESHOLDS,
    RECALL_THRESHOLDS,
    LocalizationRecallPrecision,
    PrecisionCurves,
    average_recall,
    bound_order,
)
from tests.helpers.problems import (
    detections,
    ground_truth,
    pycocotools_evaluation,
    random_problem,
)


def results_of(content, results, iou_type="bbox", lrp_thresholds="scores"):
    gt = ground_truth_from_coco(content, iou_type)
    found = detections_from_coco(results, gt, iou_type)
    return measure(gt, found, iou_type=iou_type, lrp_thresholds=lrp_thresholds)


def undefined_as_nan(values):
    return np.where(values < 0, np.nan, values)


def assert_measures_are_pycocotools(content, results, iou_type="bbox"):
    evaluation = pycocotools_evaluation(content, results, iou_type)
    ours = results_of(content, results, iou_type)
    precision = undefined_as_nan(evaluation.eval["precision"])  # (T, 101, C, A, M)
    assert np.array_equal(evaluation.params.recThrs, RECALL_THRESHOLDS)
    assert np.array_equal(
        ours.precision, precision[..., 0, 2].transpose(0, 2, 1), equal_nan=True
    )  # every bit
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for name, expected in zip(names, evaluation.stats, strict=True):
        expected = 100 * expected if expected >= 0 else np.nan
        assert ours.measures[name] == pytest.approx(expected, abs=1e-11, nan_ok=True), name
    for percent in (50, 60, 70, 75, 80, 90):
        row = np.flatnonzero(np.isclose(evaluation.params.iouThrs, percent / 100))[0]
        expected = 100 * np.nanmean(precision[row, ..., 0, 2], axis=0)
        assert np.allclose(ours.per_class[f"AP{percent}"], expected, atol=1e-11, equal_nan=True)
        assert ours.measures[f"AP{percent}"] == pytest.approx(np.nanmean(expected), nan_ok=True)
    recall = undefined_as_nan(evaluation.eval["recall"])  # (T, C, A, M)
    for area, name in enumerate(("", "s", "m", "l")):
        expected = 100 * precision[..., area, 2].mean(axis=(0, 1))
        assert np.allclose(ours.per_class[f"AP{name}"], expected, atol=1e-11, equal_nan=True)
        expected = 100 * recall[..., area, 2].mean(axis=0)
        name = f"AR{name or 100}"
        assert np.allclose(ours.per_class[name], expected, atol=1e-11, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
class TestAgainstPycocotools:
    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("ties", [True, False])
    def test_random(self, seed, ties):
        assert_measures_are_pycocotools(*random_problem(seed, ties=ties))

    def test_masks(self):
        content, results = random_problem(1, images=6, masks=True)
        assert_measures_are_pycocotools(content, results, "segm")

    def test_without_objects(self):
        assert_measures_are_pycocotools(ground_truth([]), detections([(1, 1, (0, 0, 10, 10), 0.5)]))

    @pytest.mark.parametrize("count", [20, 25, 50, 100, 307])
    def test_recalls_on_the_thresholds(self, count):
        # A false positive after each true one: precision tells which recall each threshold takes.
        boxes = [(i % 15 * 12.0, i // 15 * 9.0, 10.0, 8.0) for i in range(count)]
        content = ground_truth([(i % 4 + 1, 1, b) for i, b in enumerate(boxes)], range(1, 5))
        rows = [(i % 4 + 1, 1, b, 1 - i / count / 2) for i, b in enumerate(boxes)]
        rows += [(i % 4 + 1, 1, (150, 180, 9, 9), 1 - (i + 0.5) / count / 2) for i in range(count)]
        assert_measures_are_pycocotools(content, detections(rows))


class TestByHand:
    """Four objects; the ranking is true (IoU 1), false, true (IoU 0.6), true (IoU 0.8)."""

    @pytest.fixture
    def results(self):
        boxes = [(0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10), (60, 0, 10, 10)]
        content = ground_truth([(1, 1, box) for box in boxes], categories=(1,))
        rows = [
            (1, 1, (0, 0, 10, 10), 0.9),
            (1, 1, (90, 0, 10, 10), 0.8),
            (1, 1, (20, 0, 10, 6), 0.7),
            (1, 1, (40, 0, 10, 8), 0.6),
        ]
        return results_of(content, detections(rows))

    def test_average_precision(self, results):
        # At 0.5: precision 1 up to a recall of 1/4, 3/4 up to 3/4, then 0: 26, 50 and 25 of 101.
        assert results.measures["AP50"] == pytest.approx(100 * (26 + 50 * 0.75) / 101)
        # At 0.75: 1 up to 1/4, 2/4 up to 2/4.
        assert results.measures["AP75"] == pytest.approx(100 * (26 + 25 * 0.5) / 101)
        assert results.measures["AP90"] == pytest.approx(100 * 26 / 101)

    def test_recall(self, results):
        # Found: 3 at 0.5, 0.55, 0.6; 2 at 0.65 .. 0.8; 1 at 0.85, 0.9, 0.95.
        assert results.measures["AR100"] == pytest.approx(100 * (3 * 3 + 4 * 2 + 3 * 1) / 40)
        assert results.measures["AR1"] == pytest.approx(25)

    def test_bounds(self, results):
        assert results.precision_upper[0].mean() == results.precision[0].mean()
        assert results.precision_lower[0].mean() == results.precision[0].mean()
        # Upper: 1, false, 0.8, 0.6. At 0.75: 1 up to 1/4, 2/3 up to 2/4.
        assert results.measures["AP75_upper"] == pytest.approx(100 * (26 + 25 * 2 / 3) / 101)
        # Lower: 0.6, false, 0.8, 1. At 0.75: false, false, true, true: 2/4 up to 2/4.
        assert results.measures["AP75_lower"] == pytest.approx(100 * 51 * 0.5 / 101)
        assert results.measures["AP_lower"] < results.measures["AP"] < results.measures["AP_upper"]

    def test_optimal_lrp(self, results):
        # Of the first: (0 + 0 + 3) / 4; of the first three: (2 x 0.4 + 1 + 2) / 5; of all four:
        # (2 x (0.4 + 0.2) + 1 + 1) / 5, the least.
        assert results.measures["oLRP"] == pytest.approx(100 * 3.2 / 5)
        assert results.measures["oLRP_Loc"] == pytest.approx(100 * 0.6 / 3)
        assert results.measures["oLRP_FP"] == pytest.approx(100 / 4)
        assert results.measures["oLRP_FN"] == pytest.approx(100 / 4)
        # That of the last of the four.
        assert results.per_class["oLRP_threshold"].tolist() == [results.matches.scores.min()]


class TestBounds:
    @pytest.mark.parametrize("seed", range(8))
    def test_leave_ap50_as_it_is(self, seed):
        results = results_of(*random_problem(seed))
        assert (results.matches.ious > 0).sum() > 10
        for bound in (results.precision_upper, results.precision_lower):
            assert np.array_equal(results.precision[0], bound[0], equal_nan=True)

    def test_enclose_ap(self):
        results = results_of(*random_problem(0, images=60))
        has_objects = results.per_class["ground_truths"] > 0
        assert (results.per_class["true_positives"][has_objects] > 20).sum() == 3
        order = "AP_lower", "AP", "AP_upper"
        lower, ap, upper = (results.per_class[name][has_objects] for name in order)
        assert (lower < 0.9 * ap).all() and (ap < 0.9 * upper).all()

    def test_order(self):
        categories = np.array([0, 0, 0, 0, 1, 1, 1])
        is_true = np.array([1, 0, 1, 1, 0, 1, 1], bool)
        ious = np.array([0.6, 0, 0.9, 0.7, 0, 0.8, 0.5])
        upper = bound_order(categories, is_true, ious, upper=True)
        assert upper.tolist() == [2, 1, 3, 0, 4, 5, 6]
        assert bound_order(categories, is_true, ious, upper=False).tolist() == [0, 1, 3, 2, 4, 6, 5]

    def test_what_is_ignored_moves_along(self):
        # The last fits its object with 0.8; at higher thresholds it goes to the crowd.
        content = ground_truth(
            [(1, 1, (0, 0, 10, 10)), (1, 1, (50, 0, 10, 10)), (1, 1, (0, 0, 40, 40), 1)]
        )
        rows = [
            (1, 1, (50, 0, 10, 10), 0.9),
            (1, 1, (0, 90, 5, 5), 0.8),
            (1, 1, (0, 0, 10, 8), 0.7),
        ]
        results = results_of(content, detections(rows))
        assert results.matches.ignored[0, :, 2].tolist() == [False] * 7 + [True] * 3
        # At 0.9, true, false, ignored: 1 for 51 of 101 recalls; lower, ignored, false, true: 1/2.
        assert results.precision[8, 0].sum() == pytest.approx(51)
        assert results.precision_upper[8, 0].sum() == pytest.approx(51)
        assert results.precision_lower[8, 0].sum() == pytest.approx(51 / 2)

    def test_rank_correlation_of_the_bounds_is_one(self):
        """What the permuted ranking gives when it is measured from the start."""
        content, results = random_problem(3, ties=False)
        matches = results_of(content, results).matches
        for upper in (True, False):
            order = bound_order(
                matches.categories, matches.true_positives[0, 0], matches.ious, upper=upper
            )
            ious = matches.ious[order][matches.true_positives[0, 0]]
            categories = matches.categories[matches.true_positives[0, 0]]
            for category in np.unique(categories):
                steps = np.diff(ious[categories == category])
                assert (steps <= 0).all() if upper else (steps >= 0).all()


def lrp_by_loops(content, results, thresholds):
    """Oksuz et al., section 3, read aloud: one class, one operating point after another.

    Of 2018 these are scores of 0:0.01:1; since 2020 the first k detections, for every k.
    """
    evaluation = pycocotools_evaluation(content, results)
    found = []
    for category in evaluation.params.catIds:
        scored, num_gt = [], 0  # (score, IoU of a true positive or None)
        for entry in evaluation.evalImgs:
            if entry is None or entry["category_id"] != category:
                continue
            if entry["aRng"] != evaluation.params.areaRng[0]:
                continue
            key = entry["image_id"], category
            columns = {gt["id"]: index for index, gt in enumerate(evaluation._gts[key])}
            num_gt += sum(not ignored for ignored in entry["gtIgnore"])
            for row, score in enumerate(entry["dtScores"]):
                matched = entry["dtMatches"][0, row]
                if entry["dtIgnore"][0, row]:
                    continue
                iou = evaluation.ious[key][row, columns[matched]] if matched else None
                scored.append((score, iou))
        best = None
        scored.sort(key=lambda pair: -pair[0])  # stable: those of the same score by image
        points = [(step / 100, [iou for score, iou in scored if score >= step / 100])
                  for step in range(101)]  # fmt: skip
        if thresholds == "scores":
            points = [(scored[k - 1][0] if k else np.nan, [iou for _, iou in scored[:k]])
                      for k in range(len(scored) + 1)]  # fmt: skip
        for threshold, kept in points:
            errors = [1 - iou for iou in kept if iou is not None]
            tp, fp = len(errors), len(kept) - len(errors)
            fn = num_gt - tp
            if num_gt == 0:
                continue
            lrp = (sum(errors) / (1 - 0.5) + fp + fn) / (tp + fp + fn)
            if best is None or lrp < best[0] - 1e-12:
                parts = (sum(errors) / tp, fp / (tp + fp), fn / num_gt, threshold) if tp else (
                    np.nan, np.nan, 1, np.nan)  # fmt: skip
                best = (lrp, *parts)
        found.append(best or (np.nan,) * 5)
    return np.array(found).T


class TestOptimalLRP:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("ties", [True, False])
    @pytest.mark.parametrize("thresholds", LRP_THRESHOLDS)
    def test_is_the_published_definition(self, seed, ties, thresholds):
        content, results = random_problem(seed, ties=ties)
        ours = results_of(content, results, lrp_thresholds=thresholds).per_class
        names = "oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN"
        expected = lrp_by_loops(content, results, thresholds)
        for name, values in zip(names, expected, strict=False):
            assert np.allclose(ours[name], 100 * values, atol=1e-9, equal_nan=True), name
        assert np.allclose(ours["oLRP_threshold"], expected[4], equal_nan=True)

    def test_scores_on_a_threshold_reach_it(self):
        boxes = [(20.0 * i, 0, 10, 10) for i in range(5)]
        content = ground_truth([(1, 1, box) for box in boxes], categories=(1,))
        for step in range(1, 101):
            rows = [(1, 1, box, step / 100) for box in boxes]
            rows += [(1, 1, (0, 100, 10, 10), step / 100 - 1e-6)] * 10
            results = results_of(content, detections(rows), lrp_thresholds="grid")
            assert results.measures["oLRP"] == 0
            assert results.per_class["oLRP_threshold"].tolist() == [step / 100]

    def test_every_score_is_a_threshold(self):
        """Between two steps of the grid there are a right and two wrong detections."""
        content = ground_truth([(1, 1, (0, 0, 10, 10))], categories=(1,))
        rows = [(1, 1, (0, 0, 10, 10), 0.5049)]
        rows += [(1, 1, (0, 100, 10, 10), 0.5041), (1, 1, (0, 200, 10, 10), 0.5042)]
        results = results_of(content, detections(rows))
        assert results.measures["oLRP"] == 0
        assert results.per_class["oLRP_threshold"].tolist() == [0.5049]
        # (0 + 2 + 0) / (1 + 2 + 0)
        grid = results_of(content, detections(rows), lrp_thresholds="grid")
        assert grid.measures["oLRP"] == pytest.approx(200 / 3)
        for wrong in ("steps", np.arange(3)):
            with pytest.raises(ValueError, match="^lrp_thresholds must be one of .*, got "):
                results_of(content, detections(rows), lrp_thresholds=wrong)

    def test_without_true_positives(self):
        content = ground_truth([(1, 1, (0, 0, 10, 10))])
        results = results_of(content, detections([(1, 1, (50, 50, 10, 10), 0.5)]))
        assert results.measures["oLRP"] == 100 and results.measures["oLRP_FN"] == 100
        assert np.isnan(results.measures["oLRP_Loc"]) and np.isnan(results.measures["oLRP_FP"])
        assert np.isnan(results.per_class["oLRP"][1])  # has no ground truth


def test_weights_are_copies():
    """Images with weight 2 count as two images, those with weight 0 not at all."""
    content, results = random_problem(2, ties=False)
    rng = np.random.default_rng(0)
    counts = {image["id"]: int(count) for image, count in zip(
        content["images"], rng.integers(0, 4, len(content["images"])), strict=True)}  # fmt: skip
    gt = ground_truth_from_coco(content)
    matches = match(gt, detections_from_coco(results, gt))
    image_weights = np.array([counts[i] for i in gt.image_ids], float)
    weights = image_weights[matches.images]
    counted = ~gt.is_crowd
    num_gt = np.bincount(gt.categories[counted], image_weights[gt.images[counted]], minlength=4)

    def copies(rows):
        return [
            {**row, "image_id": row["image_id"] * 10 + copy}
            for row in rows
            for copy in range(counts[row["image_id"]])
        ]

    repeated = {
        "images": [{"id": i * 10 + copy} for i in counts for copy in range(counts[i])],
        "categories": content["categories"],
        "annotations": copies(content["annotations"]),
    }
    for number, annotation in enumerate(repeated["annotations"]):
        annotation["id"] = number
    expected = results_of(repeated, copies(results))
    assert (np.diff(expected.matches.scores) == 0).any()
    curves = PrecisionCurves(
        matches.categories, matches.true_positives[0], matches.ignored[0], len(gt.category_ids)
    )
    assert np.array_equal(curves.precision(weights, num_gt), expected.precision, equal_nan=True)
    lrp = LocalizationRecallPrecision(matches).optimum(weights, num_gt)
    for name in ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN"):
        value = {"oLRP": lrp.error, "oLRP_Loc": lrp.localization,
                 "oLRP_FP": lrp.false_positives, "oLRP_FN": lrp.false_negatives}[name]  # fmt: skip
        assert np.allclose(100 * value, expected.per_class[name], equal_nan=True)


def test_average_recall_of_few_detections():
    content = ground_truth([(1, 1, (20.0 * i, 0, 10, 10)) for i in range(4)])
    rows = [(1, 1, (20.0 * i, 0, 10, 10), 1 - i / 10) for i in range(3)]
    gt = ground_truth_from_coco(content)
    matches = match(gt, detections_from_coco(detections(rows), gt))
    for count, expected in ((1, 0.25), (2, 0.5), (100, 0.75)):
        recall = average_recall(matches, "all", count)
        assert recall.shape == (len(IOU_THRESHOLDS), 2)
        assert (recall[:, 0] == expected).all() and np.isnan(recall[:, 1]).all()
