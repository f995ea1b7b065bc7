"""What the site of the documentation is made of: a page of each loss, whose code runs."""

import json
import re

import pytest
import torch

import corrdet
from tests.helpers.training import ROOT
from tools.docs_site import examples, pages, pictures

LOSSES = pages.all_losses()


@pytest.fixture(autouse=True)
def costs_nothing(monkeypatch):
    """Costs are measured when the site is built."""
    monkeypatch.setattr(pages, "cost", lambda *args: 1.0)


@pytest.mark.parametrize("kind, name", LOSSES)
def test_the_lines_of_a_page_run(kind, name):
    page = pages.loss_page(kind, name)
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len([line for line in code.splitlines() if line]) == 5 and f'"{name}"' in code
    names = {}
    exec(code, names)
    assert all(loss.isfinite() for loss in names["losses"].values())
    assert names["matched"].logits.grad.isfinite().all()


@pytest.mark.parametrize("kind, name", LOSSES)
def test_every_page_is_whole(kind, name):
    page = pages.loss_page(kind, name)
    assert f"# `{name}`" in page and "## Cost" in page and f"figures/gradients/{name}.png" in page
    link = re.search(r"Code: \[(.*?)\]", page)[1]
    assert (ROOT / link).is_file() and f'"{name}"' in (ROOT / link).read_text()
    assert f"losses/{name}.md" in pages.gallery()


@pytest.mark.parametrize("name", ["ap", "softmax_cross_entropy", "ghm_r", "correlation"])
def test_pictures(name):
    (kind,) = [kind for kind, own in LOSSES if own == name]
    assert pictures.gradient_picture(kind, name).startswith(b"\x89PNG")


def test_cost():
    assert examples.cost("classification", "task_aligned", 1) > 0
    assert "torch" in examples.machine()


def test_a_notebook_is_a_page():
    path = ROOT / "docs" / "notebooks" / "toy_ranking.ipynb"
    page = pages.notebook_page(path)
    assert page.startswith("# Losses on a toy ranking") and "data:image/png" in page
    assert page.count("```python") == sum(
        cell["cell_type"] == "code" for cell in json.loads(path.read_text())["cells"]
    )


def test_the_update_by_hand():
    """The numbers of docs/error-driven.md."""
    text = (ROOT / "docs" / "error-driven.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(block, names)
        if "gradient" in names and "first" not in names:
            names["first"] = names["loss"], names["gradient"]
    loss, gradient = names["first"]
    torch.testing.assert_close(loss.detach(), torch.tensor(1.125 / 2.125))
    expected = torch.tensor([-1.125, 0.75, 0.375, 0.0]) / 2.125
    torch.testing.assert_close(gradient, expected)
    assert "-0.5294, 0.3529, 0.1765, 0" in text
    torch.testing.assert_close(names["ranking"].item(), 1 / 3)
    torch.testing.assert_close(names["sorting"].item(), 0.1)
    torch.testing.assert_close(names["ranked"], torch.tensor([-1 / 6, -1 / 6, 1 / 3, 0.0]))
    torch.testing.assert_close(names["sorted_"], torch.tensor([0.1, -0.1, 0.0, 0.0]))


def test_names_of_the_guide_are_losses():
    text = (ROOT / "docs" / "choosing.md").read_text()
    known = {name for _, name in LOSSES}
    named = {name for name in re.findall(r"`([a-z_0-9]+)`", text) if "_" in name or name in known}
    assert len(named & known) >= 12
    assert named - known <= {"beta_img", "beta_cls"}


def test_every_page_of_the_docs_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f": {path.name}\n" in navigation, path.name


def test_citation():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {corrdet.__version__}\n" in citation
    assert "Apache-2.0" in (ROOT / "pyproject.toml").read_text()
    assert "license: Apache-2.0\n" in citation
