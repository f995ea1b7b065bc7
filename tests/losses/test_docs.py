"""The configs in docs/losses.md are configs that a detector can be built with."""

import re

import pytest
import torch
import yaml
from detectron2.config import CfgNode

from corrdet.losses import build_criterion
from tests.helpers.losses import config, matched_predictions
from tests.helpers.training import ROOT

PAGE = (ROOT / "docs" / "losses.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)


def test_all_code_of_the_page_is_tried():
    assert len(BLOCKS) == PAGE.count("```") // 2 > 0


@pytest.mark.parametrize("block", BLOCKS)
def test_configs(block):
    cfg = config()
    before = cfg.MODEL.CRITERION.clone()
    # Unknown keys are refused, and values of another type.
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(block)))
    assert cfg.MODEL.CRITERION != before
    activation = "softmax" if "softmax" in block else "sigmoid"
    criterion = build_criterion(cfg, activation=activation, has_deltas=True)
    logits = torch.randn(20, 4 if activation == "softmax" else 3)
    losses = criterion(matched_predictions(logits=logits, activation=activation), iteration=10)
    assert all(value.isfinite() for value in losses.values())
