import numpy as np
import pytest
import scipy.stats

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import Bootstrap, bootstrap, measure
from corrdet.measures.bootstrap import GroupCorrelation, ImageSample, costs_of, holm
from tests.helpers.problems import detections, ground_truth, random_problem


def results_of(content, results):
    gt = ground_truth_from_coco(content)
    return measure(gt, detections_from_coco(results, gt))


def test_a_sample_is_what_a_file_with_its_images_gives():
    content, results = random_problem(0, images=30, ties=False)
    sample = ImageSample(results_of(content, results))
    rng = np.random.default_rng(0)
    for _ in range(4):
        ids = sorted(image["id"] for image in content["images"])
        drawn = rng.integers(len(ids), size=len(ids))
        repeated = {"images": [], "annotations": [], "categories": content["categories"]}
        rows = []
        for number, place in enumerate(drawn):
            repeated["images"].append({"id": number})
            for row in content["annotations"]:
                if row["image_id"] == ids[place]:
                    number_of_row = len(repeated["annotations"]) + 1
                    repeated["annotations"].append({**row, "image_id": number, "id": number_of_row})
            rows += [
                {**row, "image_id": number} for row in results if row["image_id"] == ids[place]
            ]
        whole = results_of(repeated, rows)
        expected = {**whole.measures, **costs_of(whole)}
        found = sample.measures(np.bincount(drawn, minlength=len(ids)).astype(float))
        assert len(found) == 22
        for name, value in found.items():
            assert value == pytest.approx(expected[name], abs=1e-9), name


def test_each_image_once_is_the_measure_itself():
    results = results_of(*random_problem(1))
    counts = np.ones(len(results.ground_truth.image_ids))
    expected = {**results.measures, **costs_of(results)}
    for name, value in ImageSample(results).measures(counts).items():
        assert value == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("seed", range(4))
def test_weighted_correlations_are_those_of_repeated_pairs(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 8, (2, 200)) / 8
    groups = rng.integers(0, 5, 200)
    y[groups == 3] = 0.5  # constant
    x, y, groups = x[groups != 4], y[groups != 4], groups[groups != 4]  # empty
    weights = rng.integers(0, 4, len(x)).astype(float)
    correlation = GroupCorrelation(x, y, groups, 5)
    found = {"pearsonr": correlation.pearson(weights), "spearmanr": correlation.spearman(weights)}
    for name, values in found.items():
        assert np.isnan(values[3:]).all()
        for group in range(3):
            chosen = np.repeat(
                np.flatnonzero(groups == group), weights[groups == group].astype(int)
            )
            expected = getattr(scipy.stats, name)(x[chosen], y[chosen]).statistic
            assert values[group] == pytest.approx(expected)


def test_seed():
    results = [results_of(*random_problem(2))]
    first, again, other = (bootstrap(results, 5, seed).samples["AP"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_files_are_compared_on_the_same_images():
    content, rows = random_problem(4, images=40, ties=False)
    gt = ground_truth_from_coco(content)
    all_of_them, same = (measure(gt, detections_from_coco(rows, gt)) for _ in range(2))
    shifted = [{**row, "bbox": [row["bbox"][0] + 3, *row["bbox"][1:]]} for row in rows]
    worse = measure(gt, detections_from_coco(shifted, gt))
    drawn = bootstrap([all_of_them, same, worse], 60)
    assert drawn.difference("AP", 1) == (0, 0)
    low, high = drawn.difference("oLRP_Loc", 2)
    assert 0 < low < worse.measures["oLRP_Loc"] - all_of_them.measures["oLRP_Loc"] < high
    # Paired: of the difference in each sample.
    samples = drawn.samples["oLRP_Loc"][2] - drawn.samples["oLRP_Loc"][0]
    assert high - low == pytest.approx(np.diff(np.quantile(samples, [0.025, 0.975])).item())


def test_an_interval_is_the_spread_of_the_samples_around_the_measure():
    samples = np.arange(101.0)  # their mean is 50, which is 10 above the measure
    drawn = Bootstrap(0, {"AP": np.array([40.0])}, {"AP": samples[None]})
    # Nothing is below 0.
    assert drawn.interval("AP", 0) == pytest.approx((0, 87.5))
    signed = Bootstrap(0, {"KCC": np.array([40.0])}, {"KCC": samples[None]})
    assert signed.interval("KCC", 0) == pytest.approx((-7.5, 87.5))
    high = Bootstrap(0, {"AP": np.array([90.0])}, {"AP": samples[None]})
    assert high.interval("AP", 0) == pytest.approx((42.5, 100))
    assert drawn.interval("AP", 0, 0.5) == pytest.approx((15, 65))
    both = Bootstrap(0, {"AP": np.array([40.0, 43])}, {"AP": np.stack([samples, samples + 4])})
    assert both.difference("AP", 1) == (3, 3) and both.difference("AP", 0, 1) == (-3, -3)


def test_intervals_are_of_the_central_limit_theorem():
    """Of 60 images, each with an object that is found or not: the recall is a mean."""
    annotations = [(image, 1, (0, 0, 10, 10)) for image in range(1, 61)]
    content = ground_truth(annotations, range(1, 61), (1,))
    rows = [(image, 1, (0, 0, 10, 10), 0.9) for image in range(1, 61) if image % 3]
    drawn = bootstrap([results_of(content, detections(rows))], 1000)
    low, high = drawn.interval("oLRP_FN", 0)
    assert (low + high) / 2 == pytest.approx(100 / 3, abs=2)
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * (1 / 3 * 2 / 3 / 60) ** 0.5, rel=0.2)


def test_p_values_are_those_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 1, 4000)
    samples = np.stack([np.zeros(4000), spread + 5, np.zeros(4000)])
    drawn = Bootstrap(0, {"AP": np.array([0, 1.959964, 0.0])}, {"AP": samples})
    assert drawn.p_value("AP", 1) == pytest.approx(0.05, rel=0.05)
    assert drawn.p_value("AP", 2) == 1
    assert set(drawn.corrected_p_values()) == {("AP", 1), ("AP", 2)}


def test_holms_correction():
    # The example: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least the one before.
    found = holm({"c": 0.03, "a": 0.01, "x": float("nan"), "d": 0.04, "b": 0.015})
    assert np.isnan(found.pop("x"))
    assert found == pytest.approx({"a": 0.04, "b": 0.045, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_not_defined_is_nan():
    content, _ = random_problem(0)
    drawn = bootstrap([results_of(content, [])], 3)
    assert drawn.interval("AP", 0) == (0, 0)
    assert np.isnan(drawn.interval("beta_cls", 0)).all()


def test_bad_arguments():
    results = results_of(*random_problem(0))
    with pytest.raises(ValueError, match="at least 1 sample, got 1 results and 0"):
        bootstrap([results], 0)
    content, rows = random_problem(0)
    content["images"].append({"id": 10_000})
    with pytest.raises(ValueError, match="results of the same images"):
        bootstrap([results, results_of(content, rows)], 1)
