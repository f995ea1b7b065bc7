"""DETR trains: its authors' losses in plain code, a sigmoid head, and what is hard to match."""

import itertools
from argparse import Namespace

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from corrdet.engine import CorrdetTrainer, load_config
from corrdet.matching import hungarian_matching
from corrdet.modeling.core.training import batch_images
from tests.helpers.detectors import batch, hostile_batches, is_sound, step
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow
LAYERS = 3


def detr_cfg(*overrides):
    smaller = [
        "MODEL.DEVICE", "cpu",
        "MODEL.BACKBONE.NAME", "build_resnet10_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT", 0,
        "MODEL.RESNETS.NORM", "BN",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
        "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.DETR.IN_FEATURE", "p5",
        "MODEL.DETR.NUM_CLASSES", 10,
        "MODEL.DETR.NUM_QUERIES", 12,
        "MODEL.DETR.HIDDEN_DIM", 32,
        "MODEL.DETR.NUM_HEADS", 4,
        "MODEL.DETR.FEEDFORWARD_DIM", 48,
        "MODEL.DETR.NUM_ENCODER_LAYERS", 1,
        "MODEL.DETR.NUM_DECODER_LAYERS", LAYERS,
        "MODEL.DETR.DROPOUT", 0.0,
    ]  # fmt: skip
    path = str(ROOT / "configs/detr/detr_R50.yaml")
    return load_config(Namespace(config_file=path, opts=[*smaller, *overrides]))


def build(*overrides):
    torch.manual_seed(0)
    return build_model(detr_cfg(*overrides))


SIGMOID = (
    "MODEL.DETR.ACTIVATION", "sigmoid",
    "MODEL.DETR.CLASS_COST", 2.0,
    "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal",
)  # fmt: skip


@pytest.mark.parametrize("num_objects", [(3, 1), (0, 2), (0, 0)])
def test_losses_are_the_authors(num_objects):
    model, images = build(), batch(num_objects)
    losses = step(model, images)
    with torch.no_grad():
        found = batch_images(images, model.pixel_mean, model.pixel_std, 32)
        # In training mode, as BatchNorm is of the batch.
        all_logits, all_boxes = model.predict_stages(found)
    truth = [image["instances"] for image in images]
    count = max(sum(num_objects), 1)
    for layer in range(LAYERS):
        logits, boxes = all_logits[layer], all_boxes[layer]
        labels, gt_boxes = hungarian_matching(
            logits,
            boxes,
            [t.gt_boxes.tensor for t in truth],
            [t.gt_classes for t in truth],
            [t.image_size for t in truth],
            classification_weight=1.0,
            activation="softmax",
        )
        weights = torch.ones(11)
        weights[10] = 0.1
        expected = {
            "loss_cls": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights),
            "loss_l1": 0.0,
            "loss_box_reg": 0.0,
        }
        for image, query in itertools.product(range(2), range(12)):
            if labels[image, query] == 10:
                continue
            height, width = truth[image].image_size
            box, target = boxes[image, query], gt_boxes[image, query]
            expected["loss_box_reg"] += 2 * (1 - generalized_box_iou(box[None], target[None])[0, 0])
            scaled = [b / torch.tensor([width, height] * 2) for b in (box, target)]
            coded = [torch.cat([(b[:2] + b[2:]) / 2, b[2:] - b[:2]]) for b in scaled]
            expected["loss_l1"] += 5 * (coded[0] - coded[1]).abs().sum()
        suffix = "" if layer == LAYERS - 1 else f"_{layer}"
        for name, value in expected.items():
            value = torch.as_tensor(value / (1 if name == "loss_cls" else count))
            torch.testing.assert_close(losses[name + suffix].detach(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overrides", [(), SIGMOID], ids=["softmax", "sigmoid"])
def test_hostile_batches(overrides):
    model = build(*overrides, "MODEL.CRITERION.COUPLINGS", ("correlation",))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for case, images in hostile_batches().items():
        losses = step(model, images)
        assert is_sound(model, losses), case
        for name, parameter in model.named_parameters():
            # Of the pyramid of this test one level is used.
            assert parameter.grad is not None or name.startswith("backbone.fpn_"), (case, name)
        optimizer.step()
        with torch.no_grad():
            outputs = model.eval()(images)
        assert [output.keys() for output in outputs] == [{"instances", "positives"}] * len(images)


def test_of_a_sigmoid_pairs_of_a_query_and_a_class_are_detected():
    model = build(*SIGMOID, "TEST.DETECTIONS_PER_IMAGE", 20).eval()
    assert model.class_embed.weight.shape == (10, 32)
    torch.testing.assert_close(model.class_embed.bias.sigmoid(), torch.full((10,), 0.01))
    logits, boxes = torch.randn(12, 10), torch.rand(12, 4)
    detected = model.detect(logits, boxes, (10, 10))
    scores, order = logits.sigmoid().flatten().sort(descending=True)
    torch.testing.assert_close(detected.scores, scores[:20])
    assert torch.equal(detected.pred_classes, order[:20] % 10)
    assert torch.equal(detected.pred_boxes.tensor, boxes[order[:20] // 10])


@pytest.mark.parametrize(
    "overrides",
    [(), SIGMOID, (*SIGMOID, "MODEL.CRITERION.CLASSIFICATION", "rank_sort")],
    ids=["softmax", "focal", "rank_sort"],
)
def test_the_loss_falls(overrides):
    model, images = build(*overrides), batch((3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(40):
        losses = step(model, images)
        optimizer.step()
        history.append(losses["loss_l1"].item() + losses["loss_cls"].item())
    assert sum(history[-5:]) < 0.7 * sum(history[:5])


def test_dropout_is_of_training_alone():
    model, images = build("MODEL.DETR.DROPOUT", 0.5), batch()
    first, second = step(model, images), step(model, images)
    assert not first["loss_cls"].isclose(second["loss_cls"])
    model.eval()
    with torch.no_grad():
        first, second = model(images), model(images)
    assert torch.equal(first[0]["instances"].scores, second[0]["instances"].scores)


def test_the_optimizer_has_all_parameters():
    model = build()
    optimizer = CorrdetTrainer.build_optimizer(detr_cfg(), model)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
