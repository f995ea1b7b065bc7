"""Sparse R-CNN against plain computations, and with every loss that it can have."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou, generalized_box_iou, roi_align, sigmoid_focal_loss

from corrdet import add_corrdet_config
from corrdet.data import build_train_loader
from corrdet.engine import CorrdetTrainer
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.losses.registry import refusal
from corrdet.modeling.core import training
from tests.helpers.detectors import batch
from tests.helpers.training import tiny_overrides

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAGES, PROPOSALS = 3, 12
SMALLER = [
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.SPARSE_RCNN.HIDDEN_DIM", 32,
    "MODEL.SPARSE_RCNN.NUM_ATTENTION_HEADS", 4,
    "MODEL.SPARSE_RCNN.FEEDFORWARD_DIM", 48,
    "MODEL.SPARSE_RCNN.DYNAMIC_DIM", 8,
    "MODEL.SPARSE_RCNN.NUM_STAGES", STAGES,
    "MODEL.SPARSE_RCNN.NUM_PROPOSALS", PROPOSALS,
]  # fmt: skip


def sparse_cfg(**criterion):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file("configs/quick/sparse_rcnn_baseline.yaml", False)
    cfg.merge_from_list(SMALLER)
    for key, value in criterion.items():
        cfg.MODEL.CRITERION[key] = value
    return cfg


def build(seed=0, **criterion):
    torch.manual_seed(seed)
    return build_model(sparse_cfg(**criterion))


def step(model, images):
    model.zero_grad()
    with EventStorage():
        losses = model(images)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def set_losses(model, **criterion):
    cfg = sparse_cfg(**criterion)
    for stage in model.stages:
        stage.criterion = type(model).build_criterion(cfg)


def assert_finite(losses, gradients):
    assert all(loss.isfinite() for loss in losses.values()), losses
    assert all(gradient.isfinite().all() for gradient in gradients.values())


SUFFIXES = [*(f"_{stage}" for stage in range(STAGES - 1)), ""]


def names(*losses):
    """Of all stages."""
    return {loss + suffix for loss in losses for suffix in SUFFIXES}


def plain_matching(logits, boxes, instances):
    """(proposal, ground truth) pairs of one image, by Eq. 1 and the focal loss as it is written."""
    height, width = instances.image_size
    truth, classes = instances.gt_boxes.tensor, instances.gt_classes
    p = logits.double().sigmoid()
    cost_class = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
    scale = torch.tensor([width, height, width, height])
    distance = torch.cdist(boxes / scale, truth / scale, p=1)
    cost = 2 * cost_class[:, classes] + 5 * distance - 2 * generalized_box_iou(boxes, truth)
    return [torch.tensor(indices) for indices in linear_sum_assignment(cost.detach().numpy())]


class TestTraining:
    @pytest.mark.parametrize("num_objects", [(3, 1), (0, 4), (0, 0), (30, 2)])
    def test_matches_and_losses_are_those_of_a_plain_computation(self, num_objects):
        model, images = build(), batch(num_objects)
        losses, _ = step(model, images)
        assert losses.keys() == names("loss_cls", "loss_box_reg", "loss_l1")
        with torch.no_grad():
            logits, boxes = model.refine(model.preprocess_image(images))
        assert logits.shape == (STAGES, 2, PROPOSALS, 10)
        assert boxes.shape == (STAGES, 2, PROPOSALS, 4) and boxes.dtype == torch.float32
        matched = model.match_predictions(logits, boxes, [x["instances"] for x in images])
        normalizer = max(sum(num_objects), 1)
        for stage in range(STAGES):
            targets = torch.zeros_like(logits[stage])
            giou = l1 = 0.0
            positives, ious = [], []
            for index, image in enumerate(images):
                truth = image["instances"]
                stage_predictions = logits[stage, index], boxes[stage, index]
                rows, columns = plain_matching(*stage_predictions, truth)
                assert len(rows) == min(num_objects[index], PROPOSALS)
                targets[index, rows, truth.gt_classes[columns]] = 1
                positives.append(rows + index * PROPOSALS)
                predicted, target = stage_predictions[1][rows], truth.gt_boxes.tensor[columns]
                height, width = truth.image_size
                scale = torch.tensor([width, height, width, height])
                giou += (1 - generalized_box_iou(predicted, target).diagonal()).sum()
                l1 += ((predicted - target) / scale).abs().sum()
                ious.append(box_iou(predicted, target).diagonal())
            focal = sigmoid_focal_loss(logits[stage], targets, alpha=0.25, gamma=2).sum()
            expected = {
                "loss_cls": 2 * focal / normalizer,
                "loss_box_reg": 2 * giou / normalizer,
                "loss_l1": 5 * l1 / normalizer,
            }
            for name, value in expected.items():
                found = losses[name + SUFFIXES[stage]]
                torch.testing.assert_close(found, torch.as_tensor(value), rtol=1e-4, atol=0)
            assert matched[stage].positives.tolist() == torch.cat(positives).tolist()
            torch.testing.assert_close(matched[stage].ious, torch.cat(ious), rtol=1e-4, atol=1e-6)

    def test_every_loss_trains(self):
        model, images = build(), batch((4, 3))
        chosen = {"CLASSIFICATION": "sigmoid_focal", "LOCALIZATION": "giou"}
        for kind, registry in zip(
            chosen, (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES), strict=True
        ):
            for name, loss in registry.items():
                if "sigmoid" not in loss.activations:
                    continue
                losses = {**chosen, kind: name}
                couplings = [c for c in COUPLINGS if not refusal(*losses.values(), [c])]
                set_losses(model, **losses, COUPLINGS=couplings)
                values, gradients = step(model, images)
                added = [f"loss_{c}" for c in couplings if not COUPLINGS[c].takes_localization]
                assert values.keys() == names("loss_cls", "loss_box_reg", "loss_l1", *added)
                assert_finite(values, gradients)
                for stage in range(STAGES):
                    for branch in ("cls_score", "bbox_pred"):
                        assert gradients[f"stages.{stage}.{branch}.weight"].abs().sum() > 0

    @pytest.mark.parametrize("classification", ["sigmoid_focal", "ape", "rank_sort"])
    def test_few_objects_and_many(self, classification):
        model = build(CLASSIFICATION=classification, COUPLINGS=("correlation", "association"))
        parameters = dict(model.named_parameters())
        for num_objects in ((0, 3), (0, 0), (1, 0), (PROPOSALS + 5, 300)):
            images = batch(num_objects, size=64)
            losses, gradients = step(model, images)
            assert_finite(losses, gradients)
            # Else DistributedDataParallel would wait for them.
            assert gradients.keys() == parameters.keys()
            if sum(num_objects) == 0:
                assert losses["loss_box_reg"] == losses["loss_l1"] == 0

    def test_a_weight_of_0_leaves_l1_out(self):
        cfg = sparse_cfg()
        cfg.MODEL.SPARSE_RCNN.L1_WEIGHT = 0.0
        losses, _ = step(build_model(cfg), batch())
        assert losses.keys() == names("loss_cls", "loss_box_reg")

    def test_objects_are_counted_over_processes(self, monkeypatch):
        model, images = build(), batch((3, 1))
        alone, _ = step(model, images)
        monkeypatch.setattr(training.comm, "get_world_size", lambda: 2)
        # The other process has 16, the mean is 10.
        monkeypatch.setattr(training.dist, "all_reduce", lambda count: count.add_(16))
        losses, _ = step(model, images)
        for name, loss in alone.items():
            torch.testing.assert_close(losses[name], loss * 4 / 10)
        # At evaluation processes have different numbers of images: none may wait for another.
        monkeypatch.delattr(training.dist, "all_reduce")
        with torch.no_grad():
            assert "positives" in model.eval()(images)[0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_step_in_half_precision(self, dtype):
        model = build(COUPLINGS=("association", "correlation", "task_contrastive"))
        images = batch(size=64)
        with EventStorage(), torch.autocast("cpu", dtype=dtype):
            losses = model(images)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        exact, _ = step(model, images)
        for name in names("loss_cls", "loss_box_reg"):
            torch.testing.assert_close(losses[name], exact[name], rtol=0.3, atol=0.05)

    def test_weights_that_are_not_finite_show_in_the_losses(self):
        model, images = build(), batch()
        for value in (torch.nan, torch.inf):
            with torch.no_grad():
                model.stages[0].bbox_pred.bias.fill_(value)
            with EventStorage():
                losses = model(images)
            assert not losses["loss_box_reg_0"].isfinite()


class TestGradients:
    def reached(self, losses, model):
        """Parts of which some parameter gets a gradient that is not 0."""
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(
            losses, list(parameters.values()), allow_unused=True, retain_graph=True
        )
        return {
            name.split(".")[2] if name.startswith("stages") else name.split(".")[0]
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None and gradient.abs().sum() > 0
        }

    @pytest.mark.parametrize("gradient", ["scores", "ious", "both"])
    @pytest.mark.parametrize("coefficient", ["concordance", "spearman"])
    def test_correlation_trains_the_branches_it_is_to(self, coefficient, gradient):
        cfg = sparse_cfg(COUPLINGS=("correlation",))
        cfg.MODEL.CRITERION.CORRELATION.COEFFICIENT = coefficient
        cfg.MODEL.CRITERION.CORRELATION.GRADIENT = gradient
        torch.manual_seed(0)
        model = build_model(cfg)
        with EventStorage():
            losses = model(batch((6, 4)))
        correlation = sum(losses[name] for name in names("loss_correlation"))
        reached = self.reached(correlation, model)
        assert {"backbone", "proposal_features", "interaction", "attention"} <= reached
        score_branch, box_branch = {"cls_tower", "cls_score"}, {"box_tower", "bbox_pred"}
        assert (reached & score_branch == score_branch) == (gradient != "ious")
        assert (reached & box_branch == box_branch) == (gradient != "scores")
        if gradient != "both":
            assert not reached & (box_branch if gradient == "scores" else score_branch)
        assert ("proposal_boxes" in reached) == (gradient != "scores")

    def test_stages_detach_boxes(self):
        model = build()
        _, boxes = model.refine(model.preprocess_image(batch()))
        for stage in range(STAGES):
            for other in range(STAGES):
                gradient = torch.autograd.grad(
                    boxes[stage].sum(),
                    model.stages[other].bbox_pred.weight,
                    retain_graph=True,
                    allow_unused=True,
                )[0]
                # Through stacking, the others' are zeros.
                reaches = gradient is not None and gradient.abs().sum() > 0
                assert reaches == (stage == other)
        assert "proposal_boxes" in self.reached(boxes[0].sum(), model)
        assert "proposal_boxes" not in self.reached(boxes[1].sum(), model)


class TestEvaluation:
    @pytest.mark.parametrize("max_detections", [20, 1000])
    def test_detections_are_those_of_a_plain_computation(self, max_detections):
        model, images = build().eval(), batch()
        model.max_detections = max_detections
        for image in images:
            image["height"], image["width"] = 200, 150
        with torch.no_grad():
            logits, boxes = model.refine(model.preprocess_image(images))
            outputs = model(images)
        for index, (image, output) in enumerate(zip(images, outputs, strict=True)):
            height, width = image["instances"].image_size
            expected = []
            for proposal in range(PROPOSALS):
                box = boxes[-1, index, proposal] * torch.tensor([150 / width, 200 / height] * 2)
                box = box.clamp(min=0).minimum(torch.tensor([150.0, 200.0] * 2))
                empty = box[2] <= box[0] or box[3] <= box[1]
                for class_ in range(10):
                    score = logits[-1, index, proposal, class_].sigmoid().item()
                    expected.append((score, class_, None if empty else box.tolist()))
            expected = sorted(expected, key=lambda x: -x[0])[:max_detections]
            expected = [x for x in expected if x[2] is not None]
            found = output["instances"]
            assert len(found) == len(expected) > 0
            scores, classes, its_boxes = zip(*expected, strict=True)
            torch.testing.assert_close(found.scores, torch.tensor(scores))
            assert found.pred_classes.tolist() == list(classes)
            torch.testing.assert_close(
                found.pred_boxes.tensor, torch.tensor(its_boxes), rtol=1e-4, atol=1e-3
            )

    def test_positives_are_the_last_stages_matches(self):
        model, images = build().eval(), batch((3, 0))
        with torch.no_grad():
            logits, boxes = model.refine(model.preprocess_image(images))
            outputs = model(images)
            without = model([{k: v for k, v in x.items() if k != "instances"} for x in images])
        truth = images[0]["instances"]
        rows, columns = plain_matching(logits[-1, 0], boxes[-1, 0], truth)
        scores = logits[-1, 0].sigmoid()[rows, truth.gt_classes[columns]]
        ious = box_iou(boxes[-1, 0, rows], truth.gt_boxes.tensor[columns]).diagonal()
        torch.testing.assert_close(outputs[0]["positives"]["scores"], scores)
        torch.testing.assert_close(outputs[0]["positives"]["ious"], ious)
        assert len(outputs[1]["positives"]["scores"]) == 0
        assert "positives" not in without[0]


# ---- The original's checkpoints.


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_sparse_rcnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def originals_checkpoint(model):
    """Random weights with the names and shapes that the original's model of this size has."""
    channels, inner, hidden, classes = 32, 8, 48, 10
    shapes = {
        "self_attn.in_proj_weight": (3 * channels, channels),
        "self_attn.in_proj_bias": (3 * channels,),
    }
    linear = {
        "self_attn.out_proj": (channels, channels),
        "inst_interact.dynamic_layer": (2 * channels * inner, channels),
        "inst_interact.out_layer": (channels, 49 * channels),
        "linear1": (hidden, channels),
        "linear2": (channels, hidden),
        "class_logits": (classes, channels),
        "bboxes_delta": (4, channels),
    }
    norms = ["norm1", "norm2", "norm3", "inst_interact.norm2", "inst_interact.norm3"]
    for tower, layers in (("cls_module", 1), ("reg_module", 3)):
        for layer in range(layers):
            shapes[f"{tower}.{3 * layer}.weight"] = (channels, channels)
            norms.append(f"{tower}.{3 * layer + 1}")
    for name, (outputs, inputs) in linear.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    for name, size in [*((name, channels) for name in norms), ("inst_interact.norm1", inner)]:
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    generator = torch.Generator().manual_seed(0)
    weights = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    weights["init_proposal_boxes.weight"] = torch.tensor([0.4, 0.6, 0.5, 0.7]).repeat(PROPOSALS, 1)
    weights["init_proposal_features.weight"] = torch.randn(PROPOSALS, channels, generator=generator)
    for stage in range(STAGES):
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator) * 0.2
            weights[f"head.head_series.{stage}.{name}"] = value
    return weights


def plain_forward(weights, features, scales, image_size):
    """Logits and boxes of each stage for one image, from the original's weights and the paper."""
    height, width = image_size
    x, y, w, h = weights["init_proposal_boxes.weight"].unbind(1)
    extent = torch.tensor([width, height, width, height])
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1) * extent
    objects = weights["init_proposal_features.weight"]
    for stage in range(STAGES):
        own = {
            name.removeprefix(f"head.head_series.{stage}."): value
            for name, value in weights.items()
            if name.startswith(f"head.head_series.{stage}.")
        }

        def linear(x, name, own=own):
            return F.linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))

        def norm(x, name, own=own):
            return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])

        sides = boxes[:, 2:] - boxes[:, :2]
        levels = (4 + (sides.prod(1).sqrt() / 224 + 1e-8).log2()).floor().clamp(2, 5).int() - 2
        regions = torch.stack(
            [
                roi_align(features[k], [box[None]], 7, scales[k], 2, aligned=True)[0]
                for box, k in zip(boxes, levels.tolist(), strict=True)
            ]
        )
        # Four heads of eight channels.
        queries, keys, values = (
            F.linear(objects, own["self_attn.in_proj_weight"], own["self_attn.in_proj_bias"])
            .view(PROPOSALS, 3, 4, 8)
            .permute(1, 2, 0, 3)
        )
        attended = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values
        attended = linear(attended.permute(1, 0, 2).flatten(1), "self_attn.out_proj")
        objects = norm(objects + attended, "norm1")
        filters = linear(objects, "inst_interact.dynamic_layer")
        interacted = []
        for own_filters, region in zip(filters, regions, strict=True):
            down, up = own_filters[:256].view(32, 8), own_filters[256:].view(8, 32)
            pixels = norm(region.flatten(1).t() @ down, "inst_interact.norm1").relu()
            pixels = norm(pixels @ up, "inst_interact.norm2").relu()
            pixels = linear(pixels.flatten(), "inst_interact.out_layer")
            interacted.append(norm(pixels, "inst_interact.norm3").relu())
        objects = norm(objects + torch.stack(interacted), "norm2")
        objects = norm(objects + linear(linear(objects, "linear1").relu(), "linear2"), "norm3")
        class_features = norm(linear(objects, "cls_module.0"), "cls_module.1").relu()
        box_features = objects
        for layer in range(0, 9, 3):
            box_features = norm(
                linear(box_features, f"reg_module.{layer}"), f"reg_module.{layer + 1}"
            ).relu()
        deltas = linear(box_features, "bboxes_delta")
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] / 2 * sides
        sides = sides * deltas[:, 2:].exp()
        boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
        yield linear(class_features, "class_logits"), boxes


def test_converted_weights_load_and_predict_the_same(tool, tmp_path, monkeypatch):
    model = build().eval()
    weights = originals_checkpoint(model)
    # As Detectron2 saves it.
    torch.save({"model": weights, "optimizer": {}, "iteration": 7}, tmp_path / "in.pth")
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    tool.main()
    converted = torch.load(tmp_path / "out.pth", weights_only=True)
    assert converted.keys() == {"model"}
    model.load_state_dict(converted["model"], strict=True)
    (image, *_) = batch()
    found = model.preprocess_image([image])
    with torch.no_grad():
        logits, boxes = model.refine(found)
        features = model.backbone(found.tensor)
        features = [features[name] for name in ("p2", "p3", "p4", "p5")]
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        expected = plain_forward(weights, features, scales, found.image_sizes[0])
        for stage, (its_logits, its_boxes) in enumerate(expected):
            torch.testing.assert_close(logits[stage, 0], its_logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(boxes[stage, 0], its_boxes, rtol=1e-3, atol=1e-2)


def test_what_cannot_be_converted_is_refused(tool, tmp_path, monkeypatch):
    weights = originals_checkpoint(build())
    for changes, message in (
        ({"criterion.empty_weight": torch.ones(11)}, "its classifier is a softmax"),
        ({"head.bbox_pred.weight": torch.ones(4)}, "'head.bbox_pred.weight' is no parameter"),
    ):
        with pytest.raises(ValueError, match=message):
            tool.convert({**weights, **changes})
    with pytest.raises(ValueError, match="no init_proposal_boxes.weight: it is of another"):
        tool.convert({"backbone.fpn_output2.bias": torch.ones(3)})
    # What the command finds in any detector's.
    bias = "head.head_series.0.self_attn.in_proj_bias"
    for value, message in (
        ("text", f".*'{bias}' is a str, expected weights by name"),
        (torch.tensor([float("nan")]), f"'{bias}' has values that are not finite"),
        (None, "it has no stages.0.attention.in_proj_bias: it is incomplete"),
    ):
        changed = {**weights, bias: value}
        if value is None:
            del changed[bias]
        torch.save(changed, tmp_path / "changed.pth")
        arguments = ["tool", str(tmp_path / "changed.pth"), str(tmp_path / "out.pth")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=f"was not converted: {message}"):
            tool.main()
    trap = tmp_path / "trap"
    code = pickle.dumps(Trap(trap), protocol=2)
    for name, content in (("code.pth", code), ("noise.pth", b"noise")):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / name), str(tmp_path / "out.pth")])
        with pytest.raises(SystemExit, match="was not converted: .*could run code"):
            tool.main()
    assert not trap.exists() and not (tmp_path / "out.pth").exists()


def test_the_original_is_not_overwritten(tool, tmp_path, monkeypatch, capsys):
    path = tmp_path / "original.pth"
    torch.save(originals_checkpoint(build()), path)
    content = path.read_bytes()
    (tmp_path / "link.pth").symlink_to(path)
    for out in (path, tmp_path / "link.pth"):
        monkeypatch.setattr(sys, "argv", ["tool", str(path), str(out)])
        with pytest.raises(SystemExit):
            tool.main()
        assert "expected another file" in capsys.readouterr().err
        assert path.read_bytes() == content


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# ---- Bad input.


def test_what_cannot_be_built_is_refused():
    for key, value, message in (
        ("HIDDEN_DIM", 48, "HIDDEN_DIM is 48, but the backbone's features .* have 32 channels"),
        ("NUM_ATTENTION_HEADS", 5, "divisible by NUM_ATTENTION_HEADS, got 32 and 5"),
        ("NUM_STAGES", 0, "NUM_STAGES must be >= 1, got 0"),
    ):
        cfg = sparse_cfg()
        cfg.MODEL.SPARSE_RCNN[key] = value
        with pytest.raises(ValueError, match=message):
            build_model(cfg)
    for node, key, value, message in (
        ("ROI_BOX_HEAD", "POOLER_RESOLUTION", 0, "POOLER_RESOLUTION must be >= 1, got 0"),
        ("ROI_HEADS", "IN_FEATURES", ["p2", "p9"], "ROI_HEADS.IN_FEATURES: unknown output .* 'p9'"),
    ):
        cfg = sparse_cfg()
        cfg.MODEL[node][key] = value
        with pytest.raises(ValueError, match=message):
            build_model(cfg)
    cfg = sparse_cfg()
    cfg.TEST.IMAGE_BOUNDS = True
    with pytest.raises(ValueError, match="IMAGE_BOUNDS is for dense .* for CorrdetSparseRCNN"):
        build_model(cfg)
    with pytest.raises(ValueError, match="training needs the ground truth"):
        build()([{"image": torch.zeros(3, 64, 64)}])
    with pytest.raises(ValueError, match="'softmax_cross_entropy' works on softmax heads"):
        build(CLASSIFICATION="softmax_cross_entropy")


def test_boxes_without_area_are_trained_on():
    model, images = build(COUPLINGS=("correlation",)), batch()
    truth = images[0]["instances"].gt_boxes.tensor
    images[0]["instances"].gt_boxes = Boxes(truth[:, [0, 1, 0, 3]])
    with torch.no_grad():
        model.proposal_boxes[0, 2:] = 0
        model.proposal_boxes[1, 2:] = -0.5
    assert_finite(*step(model, images))


# ---- Whole trainings.


def test_the_loss_falls(tiny_digits, tmp_path):
    cfg = sparse_cfg(COUPLINGS=("correlation",))
    cfg.merge_from_list(tiny_overrides(tiny_digits, tmp_path))
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.001, *SMALLER])
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = CorrdetTrainer.build_optimizer(cfg, model)
    loader = build_train_loader(cfg, seed=0)
    totals = []
    with EventStorage():
        for images, _ in zip(loader, range(40), strict=False):
            losses = model(images)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            totals.append(sum(losses.values()).item())
    loader.close()
    assert sum(totals[-10:]) < 0.75 * sum(totals[:10])


def test_train_net(tiny_digits, tmp_path):
    """With a memory at each stage, which checkpoints hold."""
    command = [
        sys.executable, "train_net.py",
        "--config-file", "configs/quick/sparse_rcnn_spearman.yaml",
        *tiny_overrides(tiny_digits, tmp_path),
        *SMALLER,
        "SOLVER.MAX_ITER", 2,
        "MODEL.CRITERION.CORRELATION.MEMORY", 1,
    ]  # fmt: skip
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    metrics = (tmp_path / "metrics.json").read_text()
    for name in ("loss_correlation_0", "loss_l1", "bbox/beta_img"):
        assert f'"{name}"' in metrics
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    first, _, last = (
        next(
            v
            for k, v in state.items()
            if k.startswith(f"{stage}.criterion.state.correlation.ious.0[")
        )
        for stage in ("stages.0", "stages.1", "stages.2")
    )
    assert not torch.equal(first, last)
