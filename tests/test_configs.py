"""Every config of the repository makes a detector that trains and detects."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from corrdet.engine.configuration import load_config
from tests.helpers.detectors import batch_with_masks as batch
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow

CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def models():
    """Models by their config without losses: building one takes as long as training it."""
    return {}


def build_once(cfg, models):
    key = cfg.MODEL.clone()
    key.defrost()
    del key["CRITERION"]
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if key.dump() not in models:
        models.clear()  # one at a time: they are large
        torch.manual_seed(0)
        models[key.dump()] = build_model(cfg)
    model = models[key.dump()]
    # Region-based detectors have it in their box heads, Sparse R-CNN in each of its stages.
    parts = getattr(model, "stages", [model])
    if hasattr(model, "criteria"):  # DETR
        model.criteria = torch.nn.ModuleList(
            architecture.build_criterion(cfg) for _ in model.criteria
        )
        return model
    if hasattr(model, "roi_heads"):
        predictor = model.roi_heads.box_predictor
        parts = predictor if isinstance(predictor, torch.nn.ModuleList) else [predictor]
    for part in parts:
        part.criterion = architecture.build_criterion(cfg)
    return model


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_trains_and_detects(path, models):
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    cfg = load_config(Namespace(config_file=str(ROOT / path), opts=options))
    model = build_once(cfg, models).train()
    # The quick ones have BatchNorm, which wants more than one value.
    images = batch((2, 1) if path.parts[1] in ("quick", "photographs") else (2,), size=64)
    for image in images:
        heads = getattr(model, "roi_heads", model)
        image["instances"].gt_classes %= heads.num_classes
    with EventStorage():
        losses = model(images)
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 50
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients])
    with torch.no_grad():
        outputs = model.eval()(images)
    model.zero_grad()
    assert [output.keys() for output in outputs] == [{"instances", "positives"}] * len(images)


def test_outputs_do_not_overwrite_each_other():
    folders = {}
    for path in CONFIGS:
        match = re.search(r"^OUTPUT_DIR: (.*)$", (ROOT / path).read_text(), re.MULTILINE)
        if match:
            assert match[1] not in folders, (path, folders[match[1]])
            folders[match[1]] = path
            assert Path(match[1]).name == path.stem
