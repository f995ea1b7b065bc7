"""Every composition of losses that is allowed trains a RetinaNet one step; every other is refused.

Pairs of a classification and a localization loss, without a coupling and with each of them; and all
couplings at once.
"""

from itertools import product

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from corrdet.data import build_train_loader
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.losses.registry import refusal

pytestmark = pytest.mark.slow

CLASSIFICATION = list(CLASSIFICATION_LOSSES)
LOCALIZATION = list(LOCALIZATION_LOSSES)
EACH_COUPLING = list(COUPLINGS)
ALL_COUPLINGS = [(), *((name,) for name in EACH_COUPLING), tuple(EACH_COUPLING)]

# Losses of which nothing but the other branch's may reach a branch. Through the factors of the
# harmonic loss, both reach both.
REACHES = {"loss_cls": "cls_score", "loss_box_reg": "bbox_pred"}


@pytest.fixture(scope="module")
def images(tiny_digits, tmp_path_factory):
    from tests.helpers.detectors import quick_cfg
    from tests.helpers.training import tiny_overrides

    cfg = quick_cfg()
    cfg.merge_from_list(tiny_overrides(tiny_digits, tmp_path_factory.mktemp("matrix")))
    loader = build_train_loader(cfg, seed=0)
    batch = next(iter(loader))
    loader.close()
    return batch


@pytest.mark.parametrize("classification", CLASSIFICATION)
def test_a_training_step(tiny_cfg, images, classification):
    cfg = tiny_cfg
    cfg.MODEL.CRITERION.CLASSIFICATION = classification
    for localization, couplings in product(LOCALIZATION, ALL_COUPLINGS):
        cfg.MODEL.CRITERION.LOCALIZATION = localization
        cfg.MODEL.CRITERION.COUPLINGS = couplings
        if "sigmoid" not in CLASSIFICATION_LOSSES[classification].activations:
            with pytest.raises(ValueError, match=f"{classification}' works on softmax heads"):
                build_model(cfg)
            continue
        reason = refusal(classification, localization, couplings)
        if reason:
            with pytest.raises(ValueError, match=f"^MODEL.CRITERION: {reason}"):
                build_model(cfg)
            continue
        check_step(build_model(cfg), images, couplings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "classification",
    [n for n in CLASSIFICATION if "sigmoid" in CLASSIFICATION_LOSSES[n].activations],
)
def test_a_step_in_half_precision(tiny_cfg, images, classification, dtype):
    tiny_cfg.MODEL.CRITERION.CLASSIFICATION = classification
    tiny_cfg.MODEL.CRITERION.LOCALIZATION = "giou"
    tiny_cfg.MODEL.CRITERION.COUPLINGS = ("association", "correlation", "task_contrastive")
    model = build_model(tiny_cfg)
    with EventStorage(), torch.autocast("cpu", dtype=dtype):
        losses = model(images)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    # Scaled, as by a GradScaler.
    (sum(losses.values()) * 2.0**10).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert model.head.cls_score.weight.grad.abs().sum() > 0


def check_step(model, images, couplings):
    branches = {
        name: getattr(model.head, name).weight for name in ("cls_score", "bbox_pred")
    }  # fmt: skip
    before = {name: weight.detach().clone() for name, weight in branches.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with EventStorage():
        losses = model(images)
    added = {f"loss_{name}" for name in couplings if not COUPLINGS[name].takes_localization}
    assert losses.keys() == {"loss_cls", "loss_box_reg"} | added
    for name, loss in losses.items():
        assert loss.isfinite(), (name, loss)
        gradients = torch.autograd.grad(
            loss, list(branches.values()), retain_graph=True, allow_unused=True
        )
        reached = {
            branch
            for branch, gradient in zip(branches, gradients, strict=True)
            if gradient is not None and gradient.abs().sum() > 0
        }
        both = name in REACHES and "harmonic" in couplings
        expected = set(branches) if both else {REACHES.get(name, "cls_score")}
        assert reached == expected, (name, couplings)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    for name, weight in branches.items():
        assert not torch.equal(weight, before[name]), name
