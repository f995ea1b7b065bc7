"""The benchmark of training iterations, on the tiny data."""

import json

import pytest

from benchmarks import training
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from tests.helpers.training import tiny_overrides

pytestmark = pytest.mark.slow


def test_every_loss_is_timed(tiny_cfg):
    rows = training.measure(tiny_cfg, rounds=1, batches=1)
    assert rows[0]["what"] == "sigmoid_focal + smooth_l1" and rows[0]["ratio"] == 1
    timed = {part for row in rows for part in row["what"].split(" + ")}
    named = {
        name
        for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS)
        for name, loss in registry.items()
        if "sigmoid" in loss.activations
    }
    assert named <= timed
    for row in rows:
        assert 0 < row["losses_seconds"] < row["iteration_seconds"]
    results = {
        "machine": {"gpu": None, "threads": 1, "cpu": "a CPU", "torch": "2.11"},
        "rows": [{**rows[0], "ratio": 1.049}, {**rows[1], "ratio": 1.06}],
    }
    table = training.table(results)
    assert "1 of 2 above what is demanded." in table and "1 threads of a CPU" in table


def test_every_detector_is_timed(tiny_digits, tmp_path, monkeypatch, capsys):
    overrides = [
        *tiny_overrides(tiny_digits, tmp_path),
        "MODEL.DENSE.NUM_CONVS", 1,
        "MODEL.SPARSE_RCNN.HIDDEN_DIM", 32,
    ]  # fmt: skip
    measured = training.measure_detectors
    monkeypatch.setattr(
        training, "measure_detectors", lambda *args: measured(*args, batches=1, overrides=overrides)
    )
    path, page = tmp_path / "detectors.json", tmp_path / "page.md"
    page.write_text("<!-- detectors cpu: begin -->\n<!-- detectors cpu: end -->\n")
    training.main(
        ["--detectors", "--rounds", "1", "--threads", "1", "--json", str(path)]
        + ["--markdown", str(page)]
    )
    results = json.loads(path.read_text())
    rows = {row["what"]: row for row in results["rows"]}
    assert list(rows) == list(training.DETECTORS)
    assert rows["Detectron2's RetinaNet"]["ratio"] == 1
    for row in rows.values():
        against = rows[row["against"]]["iteration_seconds"]
        assert 0 < row["ratio"] == row["iteration_seconds"] / against
    assert rows["Sparse R-CNN + correlation"]["against"] == "Sparse R-CNN"
    assert rows["Sparse R-CNN + correlation"]["demanded"] == 1.02
    printed = capsys.readouterr().out
    assert "| ATSS" in printed and printed.strip() in page.read_text()


def test_detectors_are_compared_at_equal_backbone_and_images():
    configs = {
        name: training.quick_config("cpu", config, overrides)
        for name, (config, overrides, _, _) in training.DETECTORS.items()
    }
    reference = configs["Detectron2's RetinaNet"]
    assert reference.MODEL.META_ARCHITECTURE == "RetinaNet"
    for name, cfg in configs.items():
        assert cfg.MODEL.RESNETS == reference.MODEL.RESNETS, name
        assert cfg.MODEL.FPN.OUT_CHANNELS == reference.MODEL.FPN.OUT_CHANNELS, name
        # The first has depth 10 whatever MODEL.RESNETS.DEPTH says, the second as it says.
        backbone = cfg.MODEL.BACKBONE.NAME
        assert "resnet10_fpn" in backbone or backbone.startswith("build_ssd_resnet"), name
    assert reference.MODEL.RESNETS.DEPTH == 10
    stages = {cfg.MODEL.SPARSE_RCNN.NUM_STAGES for name, cfg in configs.items() if "Sparse" in name}
    assert stages == {6}


def test_what_is_above_a_demand_is_marked():
    row = {"what": "a", "against": "b", "iteration_seconds": 0.5, "demanded": 1.02}
    results = {
        "machine": {"gpu": None, "threads": 1, "cpu": "a CPU", "torch": "2.11"},
        "rows": [
            {**row, "ratio": 1.02},
            {**row, "ratio": 1.03},
            {**row, "ratio": 3, "demanded": None},
        ],
    }
    *_, first, second, third = training.detectors_table(results).splitlines()
    assert first.split("|")[-2].strip() == "ok" and "<= 1.02" in first
    assert second.split("|")[-2].strip() == "above" and third.split("|")[-2].strip() == ""


def test_profile(tiny_cfg, tmp_path):
    table = training.profile(tiny_cfg, str(tmp_path / "profile"))
    assert "aten::" in table
    assert "corrdet::step_error" in (tmp_path / "profile" / "trace.json").read_text()


def test_the_page_has_its_place():
    page = training.CONFIGS.parents[1] / "docs" / "benchmarks.md"
    for section in ("training cpu", "detectors cpu"):
        assert training.split_at_markers(page, section)
