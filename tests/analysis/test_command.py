import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corrdet.analysis.__main__ import main
from corrdet.analysis.metrics import analyze, metrics, names_of, table
from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.errors import CorrdetError
from corrdet.measures import measure
from tests.helpers.problems import detections, ground_truth, random_problem

pytestmark = pytest.mark.usefixtures("without_figures")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    """Ground truth, a results file, and one of a worse detector."""
    content, rows = random_problem(0, images=20)
    shifted = [{**row, "bbox": [row["bbox"][0] + 4, *row["bbox"][1:]]} for row in rows]
    for name, data in (("gt", content), ("a", rows), ("b", shifted)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


def run(folder, *names, options=()):
    detections = [str(folder / f"{name}.json") for name in names]
    main(["--ground-truth", str(folder / "gt.json"), "--detections", *detections,
          "--output", str(folder / "out"), "--bootstrap", "100", *options])  # fmt: skip
    return json.loads((folder / "out" / "metrics.json").read_text())


def error_of(folder, *names, options=()):
    with pytest.raises(SystemExit) as caught:
        run(folder, *names, options=options)
    assert not (folder / "out").exists()
    message = caught.value.code
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_results_of_a_detector_without_nms(tmp_path):
    """As DETR writes them: so many rows an image, most of them near duplicates of low score."""
    rng = np.random.default_rng(0)
    content, _ = random_problem(0)
    best, duplicates = [], []
    for annotation in content["annotations"]:
        if annotation["iscrowd"]:
            continue
        x, y, width, height = annotation["bbox"]
        row = {"image_id": annotation["image_id"], "category_id": annotation["category_id"]}
        shift = rng.uniform(0, 0.2)
        best.append({**row, "bbox": [x + shift * width, y, width, height],
                     "score": float(rng.uniform(0.5, 1))})  # fmt: skip
        for _ in range(8):
            duplicates.append({**row, "bbox": [x + rng.uniform(0, 0.2) * width, y, width, height],
                               "score": float(rng.uniform(0, 0.4))})  # fmt: skip
    for name, data in (("gt", content), ("best", best), ("all", best + duplicates)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    written = run(tmp_path, "all", "best")
    (alone,) = written["others"]
    # A duplicate is no true positive of its own where the first one is good enough: at an IoU of
    # 0.5 all of them only come after what is found already.
    assert alone["AP50"] > 90
    for name in ("AP50", "beta_cls", "oLRP_FN"):
        assert written[name] == pytest.approx(alone[name], abs=1e-6), name
    assert written["detections"] == 9 * len(best)
    for measures in (written, alone):
        assert measures["AP_lower"] < measures["AP"] < measures["AP_upper"]
        assert -100 <= measures["beta_cls"] <= 100
        assert all(math.isfinite(measures[name]) for name in ("PCC", "SCC", "KCC", "oLRP_Loc"))


def test_one_file(files, capsys):
    written = run(files, "a")
    content, rows = (json.loads((files / f"{name}.json").read_text()) for name in ("gt", "a"))
    (result,), _ = analyze(str(files / "gt.json"), [str(files / "a.json")], samples=0)
    assert written["name"] == "a" and written["others"] == []
    assert written["images"] == 20 and written["detections"] == len(rows)
    assert written["ground_truths"] == sum(not a["iscrowd"] for a in content["annotations"])
    assert written["detections_left_out"] == result.num_left_out > 0
    for name in ("AP", "AP50", "AP75", "oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN", "beta_cls",
                 "AP_upper", "AP_lower", "PCC", "SCC", "KCC"):  # fmt: skip
        assert written[name] == result.measures[name]
        if not name.endswith("CC"):
            values = result.per_class[name]
            assert written["per_class"]["class 1"][name] == values[0]
    assert written["per_class"]["class 4"]["AP"] is None
    assert written["per_class"]["class 4"]["ground_truths"] == 0
    assert written["bootstrap"]["samples"] == 100
    low, high = written["bootstrap"]["intervals"]["AP"]
    assert low < written["AP"] < high
    printed = capsys.readouterr().out
    assert f"{written['AP']:.2f}  [{low:.2f}, {high:.2f}]" in printed
    assert "Classes without ground truth, left out: 1 (class 4)." in printed
    assert f"{result.num_left_out} others are left out" in printed
    assert {path.name for path in (files / "out").iterdir()} == {"metrics.json", "report.html"}


def test_two_files_are_compared(files, capsys):
    written = run(files, "a", "b")
    (other,) = written["others"]
    assert other["name"] == "b" and other["AP"] < written["AP"]
    assert other["differences"]["AP"] == other["AP"] - written["AP"]
    low, high = other["bootstrap"]["differences"]["oLRP_Loc"]
    assert 0 < low < other["differences"]["oLRP_Loc"] < high
    assert "differences" not in written
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "b", "b", "-", "a"]
    (line,) = (line for line in lines if line.startswith("oLRP_Loc "))
    assert f"{other['differences']['oLRP_Loc']:+.2f}  [{low:+.2f}, {high:+.2f}] *" in line


def test_without_bootstrap(files, capsys):
    written = run(files, "a", "b", options=("--bootstrap", "0"))
    assert "bootstrap" not in written and written["others"][0]["differences"]["AP"] < 0
    assert "[" not in capsys.readouterr().out


def test_the_seed_decides(files):
    first, again, other = (
        run(files, "a", options=("--seed", seed))["bootstrap"]["intervals"] for seed in "001"
    )
    assert first == again != other


def test_masks(tmp_path):
    content, rows = random_problem(1, images=6, masks=True)
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    written = run(tmp_path, "a", options=("--iou-type", "segm"))
    gt = ground_truth_from_coco(content, "segm")
    assert written["iou_type"] == "segm" and written["ground_truths"] == (~gt.is_crowd).sum()


def test_an_empty_results_file_is_measured(files, capsys):
    (files / "a.json").write_text("[]")
    written = run(files, "a")
    assert written["AP"] == 0 and written["oLRP"] == 100 and written["PCC"] is None
    printed = capsys.readouterr().out
    assert "a holds no detection." in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("PCC "))
    assert line.split(maxsplit=1)[1].strip() == "not defined"


def test_an_annotation_of_id_0_is_pointed_out(files, capsys):
    run(files, "a")
    assert "pycocotools" not in capsys.readouterr().out
    content = json.loads((files / "gt.json").read_text())
    content["annotations"][0]["id"] = 0
    (files / "gt.json").write_text(json.dumps(content))
    run(files, "a")
    assert "An annotation has the id 0: pycocotools counts" in capsys.readouterr().out


def test_what_is_printed_is_written_too(files, capsys):
    notes = run(files, "a")["notes"]
    printed = capsys.readouterr().out
    assert len(notes) >= 4 and all(note in printed for note in notes)


def test_few_images_have_no_intervals(files, capsys):
    content, rows = random_problem(0, images=19)
    for name, data in (("gt", content), ("a", rows)):
        (files / f"{name}.json").write_text(json.dumps(data))
    assert "bootstrap" not in run(files, "a")
    assert "No confidence intervals: 19 images are fewer than 20." in capsys.readouterr().out


def test_boxes_in_another_format_are_pointed_out(files, capsys):
    run(files, "a")
    assert "beyond" not in capsys.readouterr().out
    rows = json.loads((files / "a.json").read_text())
    for row in rows[: len(rows) // 5]:
        row["bbox"][2:] = [190, 190 - row["bbox"][1]]
    (files / "a.json").write_text(json.dumps(rows))
    run(files, "a")
    beyond = sum(row["bbox"][0] > 11 for row in rows[: len(rows) // 5])
    assert f"a: {beyond} of {len(rows)} boxes reach beyond" in capsys.readouterr().out


def test_annotated_boxes_without_area_are_counted(files, capsys):
    run(files, "a")
    assert "without area" not in capsys.readouterr().out
    content = json.loads((files / "gt.json").read_text())
    (first, *_) = (a for a in content["annotations"] if not a["iscrowd"])
    first["bbox"][2] = 0
    (files / "gt.json").write_text(json.dumps(content))
    run(files, "a")
    assert "without area, which nothing can find: 1." in capsys.readouterr().out


def test_rows_of_other_forms_are_said(files, capsys):
    rows = json.loads((files / "a.json").read_text())
    for row in rows:
        row["image_id"] = f"{row['image_id']}.jpg"
    rows[0]["score"] = -1
    (files / "b.json").write_text(json.dumps(rows))
    assert "[0]: expected a score" in error_of(files, "b")
    assert "expected image_id" in error_of(files, "b", options=("--format", "coco"))
    written = run(files, "b", options=("--skip-bad",))
    assert written["detections"] == len(rows) - 1
    printed = capsys.readouterr().out
    assert f"b: Rows matched with images: {len(rows)} by file name ('" in printed
    assert f"b: 1 of {len(rows)} rows cannot be used and are left out: score: 1" in printed


def test_an_ap_of_0_is_explained(files, capsys):
    rows = json.loads((files / "a.json").read_text())
    for row in rows:
        row["bbox"] = [side / 200 for side in row["bbox"]]
    (files / "b.json").write_text(json.dumps(rows))
    notes = run(files, "a", "b")["notes"]
    (note,) = (note for note in notes if "AP50 is" in note)
    assert note.startswith("b: AP50 is 0.00. Likely cause: the boxes are within 0..1.")


def test_results_of_other_images_are_an_error_that_says_so(files):
    rows = json.loads((files / "a.json").read_text())
    for row in rows:
        row["image_id"] += 10_000
    (files / "b.json").write_text(json.dumps(rows))
    assert "are these results of another image set?" in error_of(files, "b")


def test_two_classes_of_one_name_are_both_kept(files):
    content = json.loads((files / "gt.json").read_text())
    for category, name in zip(content["categories"], ("a", "a", "a (1)", "a"), strict=True):
        category["name"] = name
    (files / "gt.json").write_text(json.dumps(content))
    assert len(run(files, "a")["per_class"]) == 4


def test_names_that_no_console_has(files, capsys):
    content = json.loads((files / "gt.json").read_text())
    content["categories"][3]["name"] = "a\ud800\x1b[31m"
    (files / "gt.json").write_text(json.dumps(content))
    assert "a\ud800\x1b[31m" in run(files, "a")["per_class"]
    assert "(a\\ud800\\x1b[31m)" in capsys.readouterr().out
    assert "a\\ud800\\x1b[31m" in (files / "out" / "report.html").read_text()


class TestErrors:
    def test_no_ground_truth(self, files):
        content = ground_truth([(1, 1, (0, 0, 10, 10), 1)])
        (files / "gt.json").write_text(json.dumps(content))
        assert "gt.json: expected annotations of objects, got 1 of crowds" in error_of(files, "a")
        content["annotations"] = []
        (files / "gt.json").write_text(json.dumps(content))
        assert "expected annotations of objects, got none" in error_of(files, "a")

    def test_a_file_that_is_missing(self, files):
        assert "No such file" in (message := error_of(files, "c")) and "c.json" in message

    def test_a_file_that_is_cut_off(self, files):
        text = (files / "b.json").read_text()
        (files / "b.json").write_text(text[: len(text) // 2])
        assert "b.json: expected JSON, it may be incomplete" in error_of(files, "a", "b")

    def test_a_bad_row(self, files):
        rows = json.loads((files / "a.json").read_text())
        rows[3]["image_id"] = -5
        (files / "a.json").write_text(json.dumps(rows))
        assert "a.json: detections[3]: expected image_id" in error_of(files, "a")

    def test_annotations_in_place_of_results(self, files):
        assert "gt.json: expected a list of detections, got dict" in error_of(files, "gt")

    @pytest.mark.parametrize("option", ["--bootstrap=-1", "--bootstrap=99", "--seed=-1"])
    def test_numbers_that_are_none(self, files, capsys, option):
        with pytest.raises(SystemExit):
            run(files, "a", options=(option,))
        name, _, number = option.partition("=")
        assert f"for {name}, got {number}" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["metrics.json", "report.html"])
    def test_a_folder_in_the_place_of_a_file(self, files, name, monkeypatch):
        monkeypatch.setattr("corrdet.analysis.__main__.analyze", None)  # it does not come to that
        (files / "out" / name).mkdir(parents=True)
        with pytest.raises(SystemExit, match=f"--output: .* got the folder .*{name}"):
            run(files, "a")

    def test_an_output_that_cannot_be(self, files, monkeypatch):
        monkeypatch.setattr("corrdet.analysis.__main__.analyze", None)
        message = error_of(files, "a", options=("--output", ""))
        assert "--output: expected a folder, got nothing" in message
        message = error_of(files, "a", options=("--output", str(files / "a.json" / "x")))
        assert "--output: expected a folder, got the file" in message
        monkeypatch.setattr("os.access", lambda *_: False)
        assert "--output: expected a folder to write to, got" in error_of(files, "a")

    def test_no_folder_of_images(self, files):
        message = error_of(files, "a", options=("--images", str(files / "none")))
        assert "--images: expected a folder, got" in message

    def test_no_metrics_of_a_training(self, files):
        message = error_of(files, "a", options=("--training", str(files)))
        assert "--training: expected a folder with metrics.json, got" in message

    def test_metrics_of_another_kind(self, files):
        (files / "metrics.json").write_text('{"AP": 1}\n{}\n')
        message = error_of(files, "a", options=("--training", str(files)))
        assert "metrics.json, line 1: expected a JSON object with an iteration, got" in message

    def test_a_bug_keeps_its_traceback(self, files, monkeypatch):
        def analyze(*args, **kwargs):
            raise error

        monkeypatch.setattr("corrdet.analysis.__main__.analyze", analyze)
        for error in (ValueError("a bug"), OSError("a bug"), KeyError("a bug")):
            with pytest.raises(type(error), match="a bug"):
                run(files, "a")
        error = CorrdetError("a mistake")
        assert error_of(files, "a") == "error: a mistake"

    def test_earlier_metrics_stay_when_it_fails(self, files):
        before = run(files, "a")
        (files / "a.json").write_text("{")
        with pytest.raises(SystemExit):
            run(files, "a")
        assert json.loads((files / "out" / "metrics.json").read_text()) == before


def test_names():
    assert names_of(["x/a.json", "y/b.json"]) == ["a", "b"]
    assert names_of(["x/a.json", "y/a.json"]) == ["x", "y"]
    assert names_of(["x/in/a.json", "y/in/a.json", "y/in/b.json"]) == ["x/in/a", "y/in/a", "y/in/b"]
    assert names_of(["x/a.json", "x/a.json"]) == ["a (1)", "a (2)"]
    assert names_of(["x/a.json.gz", "x/b.json"]) == ["a", "b"]
    assert names_of(["x/a\nb.json"]) == ["a?b"]


def test_a_table_fits_the_terminal():
    gt = ground_truth_from_coco(ground_truth([(1, 1, (0, 0, 10, 10))]))
    found = [measure(gt, detections_from_coco([], gt), name=name * 20) for name in ("a", "b", "c")]
    whole = table(found, None).splitlines()
    parts = table(found, None, 80).splitlines()
    assert max(map(len, whole)) > 120 and max(map(len, parts)) <= 80
    # Every part names its rows; a column that is too wide has one of its own.
    assert sum(line.startswith("oLRP_Loc") for line in parts) == 4
    assert len(table(found, None, 10).splitlines()) == 5 * (len(whole) + 1) - 1


def test_infinite_differences_are_not_written():
    gt = ground_truth_from_coco(ground_truth([(1, 1, (0, 0, 10, 10))]))
    found = [
        measure(gt, detections_from_coco(rows, gt), name=name)
        for name, rows in (("a", []), ("b", detections([(1, 1, (0, 0, 10, 10), 0.9)])))
    ]
    entry = metrics(found, None)["others"][0]
    assert entry["differences"]["oLRP"] == -100 and entry["differences"]["oLRP_Loc"] is None
    (line,) = (line for line in table(found, None).splitlines() if line.startswith("oLRP_Loc"))
    assert line.split(maxsplit=1)[1].split() == ["not", "defined", "0.00", "not", "defined"]


@pytest.mark.slow
def test_as_a_module(files):
    done = subprocess.run(
        [sys.executable, "-m", "corrdet.analysis", "--ground-truth", files / "gt.json",
         "--detections", files / "a.json", "--output", files / "out", "--bootstrap", "100"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout and "bootstrap: 100%" in done.stderr
    assert (files / "out" / "metrics.json").is_file()
