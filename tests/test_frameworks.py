"""The programs of docs/frameworks.md run as they are, and do what the page says."""

import math
import re

import pytest

from tests.helpers.training import ROOT

PAGE = ROOT / "docs" / "frameworks.md"


def run_section(title: str) -> dict:
    """Execute the code of a section, and return its names."""
    text = PAGE.read_text()
    section = text[text.index(f"## {title}") :]
    section = section[: section.find("\n## ", 3)]
    names = {"__name__": "example"}
    for block in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_torchvision():
    history = run_section("torchvision")["history"]
    assert all(math.isfinite(value) for step in history for value in step.values())
    assert sum(history[-1].values()) < sum(history[0].values())
    assert {"loss_classifier", "loss_box_reg", "loss_task_contrastive"} < history[0].keys()


def test_transformers():
    pytest.importorskip("transformers")
    from transformers.loss.loss_utils import LOSS_MAPPING

    try:
        names = run_section("Hugging Face")
    finally:
        LOSS_MAPPING.pop("corrdet", None)
    assert {"loss_correlation", "loss_correlation_aux_0", "loss_vfl"} < set(names["names"])
    assert names["mapped"].loss.isfinite() and names["mapped"].loss != names["output"].loss


def test_detectron2():
    assert run_section("Detectron2's")["predictors"] == ["CriterionOutputLayers"] * 3


def test_every_program_of_the_page_is_run():
    text = PAGE.read_text()
    headings = re.findall(r"^## (\w+)", text, re.M)
    assert headings == ["torchvision", "Hugging", "Detectron2", "ultralytics"]
    assert set(re.findall(r"^```(\w+)$", text, re.M)) == {"python", "text"}
