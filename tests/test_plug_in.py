"""The programs of docs/plug-in.md run as they are, and do what the page says."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from corrdet.losses import Criterion
from tests.helpers.losses import config, matched_predictions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "plug-in.md"
SECTIONS = ("plain PyTorch", "Detectron2 ROI head", "loss of your own")


def run_section(title: str) -> dict:
    """Execute the code of a section, from the top, and return its names."""
    text = PAGE.read_text()
    (heading,) = re.finditer(rf"^## .*{title}.*$", text, re.M)
    following = re.compile(r"^## ", re.M).search(text, heading.end())
    end = following.start() if following else len(text)
    blocks = list(re.compile(r"^```python\n(.*?)^```$", re.M | re.S).finditer(text, 0, end))
    names = {"__name__": "example"}
    for block in blocks:
        if block.start() > heading.end():
            # A traceback then shows the line of the page.
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def plain():
    return run_section(SECTIONS[0])


@pytest.fixture(scope="module")
def detectron2_():
    return run_section(SECTIONS[1])


def test_every_program_of_the_page_is_run():
    headings = re.findall(r"^## (.*)$", PAGE.read_text(), re.M)
    assert len(headings) == len(SECTIONS)
    for heading, section in zip(headings, SECTIONS, strict=True):
        assert section in heading
    assert set(re.findall(r"^```(\w+)$", PAGE.read_text(), re.M)) == {"python"}


def test_losses_and_operators_need_pytorch_alone():
    code = """import sys
for name in ("detectron2", "fvcore", "iopath", "torchvision", "scipy", "pycocotools"):
    sys.modules[name] = None  # as if it were not installed
import corrdet.losses, corrdet.ops
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def totals(history: list[dict]) -> list[float]:
    assert all(math.isfinite(value) for step in history for value in step.values())
    return [sum(step.values()) for step in history]


def reached(loss: torch.Tensor, *modules: torch.nn.Module) -> list[bool]:
    """Whether a gradient of the loss, other than 0, reaches the parameters of each module."""
    reached = []
    for module in modules:
        gradients = torch.autograd.grad(
            loss, list(module.parameters()), retain_graph=True, allow_unused=True
        )
        reached.append(any(g is not None and bool(g.any()) for g in gradients))
    return reached


class TestPlainPyTorch:
    def test_each_loss_falls(self, plain):
        history = plain["history"]
        totals(history)
        for name in ("loss_cls", "loss_box_reg", "loss_correlation"):
            first, last = (
                sum(step[name] for step in steps) for steps in (history[:10], history[-10:])
            )
            assert last < 0.8 * first, name

    def test_the_criterion_gives_the_same_numbers(self, plain):
        names = ("features", "labels", "gt_boxes", "predictions", "losses", "same_values")
        _, labels, gt_boxes, predictions, losses, same_values = (plain[name] for name in names)
        expected = losses(*predictions, labels, gt_boxes)
        torch.testing.assert_close(same_values, expected)
        assert set(plain["other_values"]) == {"loss_cls", "loss_box_reg", "loss_association"}
        assert all(value.isfinite() for value in plain["other_values"].values())

    def test_correlation_does_not_train_the_boxes(self, plain):
        model = plain["model"]
        for name, value in plain["same_values"].items():
            expected = [name != "loss_box_reg", name == "loss_box_reg"]
            assert reached(value, model.logits, model.boxes) == expected, name


class TestDetectron2:
    @staticmethod
    def proposals() -> list[Instances]:
        """Of two images, the second without ground truth; 3 is the background."""
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(12, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 10 + torch.rand(12, 2, generator=generator) * 30], 1)
        first, second = Instances((96, 96)), Instances((96, 96))
        first.proposal_boxes = Boxes(boxes[:8])
        first.gt_boxes = Boxes(boxes[:8] + torch.rand(8, 4, generator=generator) * 4)
        first.gt_classes = torch.tensor([0, 3, 2, 1, 3, 3, 0, 3])
        second.proposal_boxes = Boxes(boxes[8:])
        second.gt_classes = torch.full((4,), 3)
        return [first, second]

    @pytest.fixture(params=[False, True], ids=["class-specific", "class-agnostic"])
    def predictor(self, detectron2_, request):
        cfg = detectron2_["cfg"].clone()
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = request.param
        predictor = detectron2_["CriterionOutputLayers"](cfg, ShapeSpec(channels=8))
        # As after some training: nothing is near 0.
        for parameter in predictor.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return predictor

    def test_losses_fall(self, detectron2_):
        history = detectron2_["history"]
        names = {"loss_cls", "loss_box_reg", "loss_task_contrastive"}
        assert all(set(step) == names | {"loss_rpn_cls", "loss_rpn_loc"} for step in history)
        values = totals(history)
        assert values[-1] < values[0]

    @pytest.mark.parametrize(("weight", "beta"), [(1.0, 0.0), (2.5, 0.5)])
    def test_plain_losses_are_detectron2s(self, predictor, weight, beta):
        predictor.criterion = Criterion(
            "softmax_cross_entropy", "smooth_l1", options={"smooth_l1": {"beta": beta}}
        )
        predictor.loss_weight = {"loss_box_reg": weight}
        predictor.smooth_l1_beta = beta
        predictions, proposals = predictor(torch.rand(12, 8)), self.proposals()
        ours = predictor.losses(predictions, proposals)
        with EventStorage():
            theirs = FastRCNNOutputLayers.losses(predictor, predictions, proposals)
        torch.testing.assert_close(ours, theirs)
        for mine, its in zip(
            *(
                torch.autograd.grad(sum(losses.values()), predictions, retain_graph=True)
                for losses in (ours, theirs)
            ),
            strict=True,
        ):
            torch.testing.assert_close(mine, its)

    def test_each_task_learns_from_the_other(self, predictor):
        losses = predictor.losses(predictor(torch.rand(12, 8)), self.proposals())
        layers = predictor.cls_score, predictor.bbox_pred
        assert reached(losses["loss_cls"], *layers) == [True, True]
        assert reached(losses["loss_box_reg"], *layers) == [True, True]
        assert reached(losses["loss_task_contrastive"], *layers) == [True, False]

    def test_without_a_positive_losses_are_finite(self, predictor):
        proposals = self.proposals()[1:]
        losses = predictor.losses(predictor(torch.rand(4, 8)), proposals)
        assert losses["loss_cls"].isfinite() and losses["loss_cls"] > 0
        assert losses["loss_box_reg"] == 0 and losses["loss_task_contrastive"] == 0
        sum(losses.values()).backward()
        for parameter in predictor.parameters():
            assert parameter.grad.isfinite().all()


def test_a_loss_of_ones_own():
    names = run_section(SECTIONS[2])
    assert names["message"] == "gap.power must be > 0, got -1.0"
    matched = matched_predictions()
    loss = names["criterion"](matched)["loss_gap"]
    gaps = (matched.scores - matched.ious).abs() - 0.1
    torch.testing.assert_close(loss, 0.5 * gaps.clamp(min=0).sum() / 5)
    node = config().MODEL.CRITERION.GAP
    assert dict(node) == {
        "POWER": 2.0, "MARGIN": 0.1, "WEIGHT": 0.5, "WARMUP_ITERS": 0, "SCHEDULE": (),
    }  # fmt: skip
