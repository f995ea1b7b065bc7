"""What the demo and the comparison read from a run."""

import importlib.util
import json
import math
from operator import itemgetter
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs():
    return load("runs")


def test_the_last_evaluation_is_read(runs, tmp_path):
    lines = [
        {"iteration": 9, "bbox/AP": 1.0, "bbox/beta_cls": 2.0},
        {"iteration": 19, "bbox/AP": 30.5, "bbox/AP50": 60.0},
        {"iteration": 29, "loss_cls": 0.1},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = runs.read_results(tmp_path)
    assert results == {"AP": 30.5, "AP50": 60.0}
    row = runs.table_row("baseline", results)
    assert row[:3] == ["baseline", 30.5, 60.0] and len(row) == 1 + len(runs.COLUMNS)
    assert math.isnan(row[-1])


def test_a_run_without_evaluation_is_an_error(runs, tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 29, "loss_cls": 0.1}\n')
    with pytest.raises(SystemExit, match="holds no evaluation"):
        runs.read_results(tmp_path)


def test_a_training_that_fails_is_an_error(runs, tmp_path):
    with pytest.raises(SystemExit, match="training failed: .*train_net.py"):
        runs.train("configs/quick/retinanet_baseline.yaml", tmp_path, ["SOLVER.MAX_ITERS", "3"])


def test_the_weights_of_couplings_are_read(runs, tmp_path):
    criterion = {"COUPLINGS": ["correlation"], "CORRELATION": {"WEIGHT": 0.3}}
    for couplings, expected in ((["correlation"], "0.3"), ([], "")):
        criterion["COUPLINGS"] = couplings
        (tmp_path / "config.yaml").write_text(json.dumps({"MODEL": {"CRITERION": criterion}}))
        assert runs.coupling_weights(tmp_path) == expected


def test_the_demo_ends_with_a_report(tiny_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    annotation = json.loads(Path(MetadataCatalog.get("tiny_val").json_file).read_text())
    image_id, category_id, (x, y, width, height) = itemgetter("image_id", "category_id", "bbox")(
        annotation["annotations"][0]
    )
    detection = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y + height / 4, width, height],
        "score": 0.9,
    }
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").write_text(json.dumps([detection]))
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 1.0}\n')
    load("demo").report(tmp_path, "tiny_val")
    content = (tmp_path / "report" / "report.html").read_text()
    assert "score 0.90, IoU 0.6" in content and 'id="training"' in content
    assert "beta_cls" in capsys.readouterr().out


def test_the_table_of_what_goes_together_is_up_to_date():
    """docs/losses.md; python tools/losses_matrix.py rewrites it."""
    module = load("losses_matrix")
    shown = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    shown = shown.partition(module.BEGIN)[2].partition(module.END)[0].strip()
    assert shown == module.matrix()


def test_every_loss_has_its_row():
    """docs/losses.md names each registered loss and each of its options."""
    from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES

    lines = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8").splitlines()
    general = {"GLOBAL_BATCH", "MEMORY"}  # described once
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            rows = [line for line in lines if line.startswith("|") and f"`{name}`" in line]
            options = {option.upper() for option in loss.options} - general
            assert any(all(f"`{option}`" in row for option in options) for row in rows), name
