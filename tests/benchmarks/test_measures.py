"""The benchmark of the measures on a small size."""

import json

import numpy as np

from benchmarks.measures import main, make_problem

SMALL = {"images": 40, "ground_truths": 300, "detections": 2000, "categories": 5}


def test_problems_are_what_was_asked_for_and_always_the_same():
    content, results = make_problem(**SMALL)
    assert len(content["images"]) == 40 and len(content["categories"]) == 5
    assert len(content["annotations"]) == 300 and len(results) == 2000
    assert make_problem(**SMALL) == (content, results)
    assert make_problem(**SMALL, seed=1)[1] != results
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    boxes = np.array([row["bbox"] for row in content["annotations"]])
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= [641, 481]).all()
    assert all(0 <= row["score"] <= 1 and min(row["bbox"][2:]) > 0 for row in results)


def test_it_prints_the_ratio(capsys):
    main([f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()])
    printed = capsys.readouterr().out.splitlines()
    (row,) = (line for line in printed if line.startswith("corrdet, all measures"))
    assert float(row.split()[-1]) < 1e-12  # what pycocotools finds
    (line,) = (line for line in printed if line.startswith("ratio to pycocotools"))
    assert float(line.split()[-1]) > 0  # how much is up to the machine


def test_it_writes_files(tmp_path):
    main(["--write", str(tmp_path)] + [f"--{n.replace('_', '-')}={v}" for n, v in SMALL.items()])
    content, results = make_problem(**SMALL)
    assert json.loads((tmp_path / "ground_truth.json").read_text()) == content
    assert json.loads((tmp_path / "detections.json").read_text()) == results
