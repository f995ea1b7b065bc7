"""The notebooks of the docs run as they are, and end where their text says."""

import json

import matplotlib
import pytest

from tests.helpers.training import ROOT

NOTEBOOKS = {path.stem: path for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}


def run(name: str) -> dict:
    """Execute the cells of a notebook, and return its names."""
    matplotlib.use("Agg")  # no screen is needed
    names = {"__name__": "notebook"}
    for index, cell in enumerate(json.loads(NOTEBOOKS[name].read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {index}", "exec"), names)
    return names


def test_these_are_all():
    assert set(NOTEBOOKS) == {"toy_ranking", "torchvision_retinanet", "reading_a_report"}
    for path in NOTEBOOKS.values():
        cells = json.loads(path.read_text())["cells"]
        assert any(cell.get("outputs") for cell in cells), "saved without its outputs"


def test_toy_ranking():
    names = run("toy_ranking")
    found = {name: names["measures"](logits) for name, logits in names["trained"].items()}
    start = names["measures"](names["start"])
    assert all(ap > start[0] + 0.2 for ap, _ in found.values())
    for name in ("focal + correlation", "quality focal", "rank and sort", "APE"):
        assert found[name][1] > max(found["focal"][1], found["AP"][1]) + 0.2, name


@pytest.mark.slow
def test_torchvision_retinanet():
    histories = run("torchvision_retinanet")["histories"]
    for history in histories.values():
        assert sum(history[-1].values()) < 0.8 * sum(history[0].values())
    assert "loss_correlation" in histories["with correlation"][0]


def test_reading_a_report():
    blind = run("reading_a_report")["metrics"]
    (knowing,) = blind["others"]
    assert (blind["name"], knowing["name"]) == ("blind", "knowing")
    assert abs(blind["beta_cls"]) < 20 < 60 < knowing["beta_cls"]
    assert knowing["AP"] > blind["AP"] + 5 and blind["AP_upper"] > blind["AP"] + 10
