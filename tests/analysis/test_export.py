import csv
import json
import math

import pytest

import corrdet
from corrdet.analysis.__main__ import main
from tests.helpers.problems import random_problem
from tests.helpers.report import shifted

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture
def written(tmp_path):
    content, rows = random_problem(0, images=20)
    content["categories"][0]["name"] = '50 % of a|b & c_d, "e"'
    for name, data in (("gt", content), ("a", rows), ("b", shifted(rows, 4))):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    arguments = ["--ground-truth", str(tmp_path / "gt.json"), "--detections"]
    arguments += [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output"]
    arguments += [str(tmp_path / "out"), "--bootstrap", "100"]
    main([*arguments, "--export", "csv", "markdown", "latex"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return tmp_path / "out", metrics, arguments


def test_every_table_in_every_form(written):
    folder, metrics, _ = written
    names = "summary", "classes", "errors", "operating_points", "confusion"
    for suffix in ("csv", "md", "tex"):
        assert {path.stem for path in folder.glob(f"*.{suffix}")} == set(names)
    with open(folder / "summary.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:4] == ["measure", "a", "a low", "a high"] and head[-1] == "b - a p"
    values = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    other = metrics["others"][0]
    assert float(values["AP"]["b"]) == other["AP"]
    assert float(values["AP"]["b - a p"]) == other["bootstrap"]["p_values"]["AP"]
    assert float(values["oLRP"]["a high"]) == metrics["bootstrap"]["intervals"]["oLRP"][1]
    with open(folder / "classes.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert len(rows) == 2 * 4 and {len(row) for row in rows} == {len(head)}
    (row,) = (
        dict(zip(head, row, strict=True)) for row in rows if row[0][0] == "5" and row[1] == "a"
    )
    assert float(row["F1"]) == metrics["per_class"][row["class"]]["F1"]
    assert row["class"] == '50 % of a|b & c_d, "e"'
    with open(folder / "operating_points.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 2 * 101


def test_special_characters(written):
    folder, _, _ = written
    assert "50 % of a\\|b & c_d" in (folder / "classes.md").read_text()
    assert "50 \\% of a" in (text := (folder / "classes.tex").read_text()) and "c\\_d" in text
    assert "\\toprule" in text


def test_what_it_was_made_of(written):
    folder, metrics, arguments = written
    made = metrics["made"]
    assert made["version"] == corrdet.__version__ and made["date"].endswith("+00:00")
    assert made["command"].startswith("python -m corrdet.analysis --ground-truth ")
    assert [file["bytes"] for file in made["files"]] == [
        (folder.parent / f"{name}.json").stat().st_size for name in ("gt", "a", "b")
    ]
    assert {len(file["sha256"]) for file in made["files"]} == {64}
    report = (folder / "report.html").read_text()
    assert made["files"][2]["sha256"] in report and made["date"] in report


def test_parts_of_metrics_agree(written):
    _, metrics, _ = written
    best = metrics["operating_points"]["best_F1"]
    curve = [value for value in metrics["operating_points"]["curves"]["F1"] if value is not None]
    assert best["f1"] >= max(curve) - 1e-9
    assert metrics["confusion"]["threshold"] == best["threshold"]
    assert all(math.isfinite(value) for value in metrics["calibration"]["errors"].values())
    assert sum(metrics["calibration"]["counts"]) > 0
