import json

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.measures import evaluate, measure
from tests.helpers.problems import random_problem


def test_paths_contents_and_arrays_are_taken(tmp_path):
    content, rows = random_problem(0)
    gt = ground_truth_from_coco(content)
    found = detections_from_coco(rows, gt)
    expected = measure(gt, found)
    for name, data in (("gt", content), ("a", {"results": rows})):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    for ground_truth, detections in (
        (tmp_path / "gt.json", str(tmp_path / "a.json")),
        (content, rows),
        (gt, {"predictions": rows}),
        (gt, found),
    ):
        results = evaluate(ground_truth, detections, name="a")
        assert str(results.measures) == str(expected.measures) and results.name == "a"
    skipped = evaluate(content, [*rows, "no row"], skip_bad=True, max_detections=1)
    assert "AR1" in skipped.measures and "1 of" in skipped.detections.notes[0]


def test_scalars_for_loggers():
    results = evaluate(*random_problem(0))
    scalars = results.scalars("val/")
    assert scalars["val/AP"] == results.measures["AP"] and set(map(type, scalars.values())) == {
        float
    }
    assert "val/PCC" not in evaluate(random_problem(0)[0], []).scalars("val/")
