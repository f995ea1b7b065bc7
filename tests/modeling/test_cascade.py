"""Cascade R-CNN: Detectron2's where the losses are, with a Criterion at each stage."""

from argparse import Namespace

import pytest
import torch
from detectron2.modeling import build_model

from corrdet.engine import load_config
from corrdet.errors import ConfigError
from corrdet.losses import Criterion
from tests.helpers.detectors import batch_with_masks as batch
from tests.helpers.detectors import hostile_batches
from tests.helpers.rcnn import (
    CASCADE,
    RANKED,
    build_rcnn,
    rcnn_cfg,
    step,
    theirs_of,
    train_through,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_objects", [(3, 1), (0, 4), (0, 0)])
@pytest.mark.parametrize("masks, weight", [(False, 1.0), (True, 2.0)])
def test_losses_and_gradients_are_detectron2s(num_objects, masks, weight):
    cfg = rcnn_cfg(masks, CASCADE)
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = cfg.MODEL.CRITERION.LOCALIZATION_WEIGHT = weight
    ours = build_model(cfg)
    images = batch(num_objects)
    losses, gradients = step(ours, images, logged := {})
    expected, expected_gradients = step(theirs_of(cfg, ours), images)
    assert losses.keys() == expected.keys()
    assert {"loss_cls_stage0", "loss_box_reg_stage2"} <= losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        theirs = expected_gradients[name]
        assert (gradient - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9, name
    assert "stage1/roi_head/num_fg_samples" in logged and "roi_head/num_fg_samples" in logged


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_detectron2s(masks):
    cfg = rcnn_cfg(masks, [*CASCADE, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    torch.manual_seed(0)
    ours = build_model(cfg).eval()
    theirs = theirs_of(cfg, ours).eval()
    images = batch()
    with torch.no_grad():
        for result, expected in zip(ours(images), theirs(images), strict=True):
            result, expected = result["instances"], expected["instances"]
            assert len(expected) > 0
            torch.testing.assert_close(result.scores, expected.scores)
            torch.testing.assert_close(result.pred_boxes.tensor, expected.pred_boxes.tensor)
            if masks:
                assert torch.equal(result.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_positives_have_the_scores_and_boxes_of_detections(activation):
    loss = "sigmoid_focal" if activation == "sigmoid" else "softmax_cross_entropy"
    model = build_rcnn(
        *CASCADE,
        "MODEL.ROI_BOX_HEAD.ACTIVATION", activation,
        "MODEL.RPN.NMS_THRESH", 1.0,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 1000,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0,
        "TEST.DETECTIONS_PER_IMAGE", 100000,
        CLASSIFICATION=loss,
    ).eval()  # fmt: skip
    images = batch((30, 10))
    with torch.no_grad():
        outputs = model(images)
    count = 0
    for output in outputs:
        positives, detected = output["positives"], output["instances"].scores
        count += len(positives["scores"])
        # Each is among the detections, of which there are those of all proposals and classes.
        for score in positives["scores"]:
            assert (detected - score).abs().min() < 1e-6
        assert ((positives["ious"] >= 0) & (positives["ious"] <= 1)).all()
    assert count > 3


def test_each_stage_has_a_criterion_of_its_own():
    model = build_rcnn(*CASCADE, COUPLINGS=("correlation", "harmonic"))
    criteria = [predictor.criterion for predictor in model.roi_heads.box_predictor]
    assert len({id(criterion) for criterion in criteria}) == 3
    assert model.criterion is criteria[-1] and isinstance(model.criterion, Criterion)
    losses, _ = step(model, batch())
    assert {f"loss_correlation_stage{stage}" for stage in range(3)} <= losses.keys()


def test_coordinates_that_are_not_finite_show_in_the_losses():
    model = build_rcnn(*CASCADE)
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias[0] = torch.nan
    losses, _ = step(model, batch())
    assert losses["loss_box_reg_stage0"].isnan() and losses["loss_box_reg_stage1"].isfinite()


@pytest.mark.parametrize("ranked", [[], RANKED], ids=["cross entropy", "ranked"])
def test_hostile_batches(ranked):
    train_through(build_rcnn(*CASCADE, *ranked), hostile_batches())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", ()), "IOUS must be an IoU for each stage"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 60)), "IOUS must be an IoU for each stage"),
        (("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)), "four positive numbers .* 2 stages"),
        (("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.6]), "IOU_THRESHOLDS must be the first .*0.5"),
        (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False), "CLS_AGNOSTIC_BBOX_REG must be True"),
        (("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True), "TRAIN_ON_PRED_BOXES must be False"),
    ],
)
def test_refusals(overrides, message):
    path = "configs/quick/faster_rcnn_baseline.yaml"
    options = list(map(str, [*CASCADE, *overrides]))
    with pytest.raises(ConfigError, match=message):
        load_config(Namespace(config_file=path, opts=options))
