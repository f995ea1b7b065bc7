"""The benchmark of training iterations, on the tiny data."""

from benchmarks import training
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES


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


def test_profile(tiny_cfg, tmp_path):
    table = training.profile(tiny_cfg, str(tmp_path / "profile"))
    assert "aten::" in table
    assert "corrdet::step_error" in (tmp_path / "profile" / "trace.json").read_text()


def test_the_page_has_its_place():
    page = training.CONFIG.parents[2] / "docs" / "benchmarks.md"
    assert training.split_at_markers(page, "training cpu")
