"""Faster and Mask R-CNN: Detectron2's own where the losses are, and every loss they can have."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.losses.registry import refusal
from tests.helpers.detectors import batch_with_masks as batch
from tests.helpers.rcnn import rcnn_cfg, step, theirs_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_objects", [(3, 1), (0, 4), (0, 0)])
@pytest.mark.parametrize(
    "masks, agnostic, loss, weight, beta",
    [
        (False, False, "smooth_l1", 1.0, 0.0),
        (False, True, "smooth_l1", 2.0, 0.5),
        (False, False, "giou", 1.0, 0.0),
        (True, False, "smooth_l1", 1.0, 0.0),
    ],
)
def test_losses_and_gradients_are_detectron2s(num_objects, masks, agnostic, loss, weight, beta):
    cfg = rcnn_cfg(masks)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = cfg.MODEL.CRITERION.LOCALIZATION = loss
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = cfg.MODEL.CRITERION.SMOOTH_L1.BETA = beta
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = cfg.MODEL.CRITERION.LOCALIZATION_WEIGHT = weight
    ours = build_model(cfg)
    theirs = theirs_of(cfg, ours)
    images = batch(num_objects)
    (losses, gradients), (expected, expected_gradients) = step(ours, images), step(theirs, images)
    assert losses.keys() == expected.keys() and {"loss_cls", "loss_box_reg"} <= losses.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=1e-3, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_detectron2s(masks):
    cfg = rcnn_cfg(masks)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    ours = build_model(cfg).eval()
    theirs = theirs_of(cfg, ours).eval()
    images = batch()
    without_truth = [{k: v for k, v in image.items() if k != "instances"} for image in images]
    with torch.no_grad():
        expected, results, plain = theirs(images), ours(images), ours(without_truth)
    assert "positives" in results[0] and "positives" not in plain[0]
    for output in (results, plain):
        for result, theirs_result in zip(output, expected, strict=True):
            result, theirs_result = result["instances"], theirs_result["instances"]
            assert len(theirs_result) > 0
            torch.testing.assert_close(result.scores, theirs_result.scores)
            torch.testing.assert_close(result.pred_boxes.tensor, theirs_result.pred_boxes.tensor)
            if masks:
                assert torch.equal(result.pred_masks, theirs_result.pred_masks)


@pytest.mark.parametrize("agnostic", [False, True])
def test_positives_are_the_matched_proposals(agnostic):
    cfg = rcnn_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.NMS_THRESH = 0.95
    model = build_model(cfg).eval()
    images = batch((30, 10))
    with torch.no_grad():
        outputs = model(images)
        found = model.preprocess_image(images)
        features = model.backbone(found.tensor)
        proposals, _ = model.proposal_generator(found, features, None)
        count = 0
        for index, (image, image_proposals) in enumerate(zip(images, proposals, strict=True)):
            truth = image["instances"]
            ious = pairwise_iou(truth.gt_boxes, image_proposals.proposal_boxes)
            best, which = ious.max(dim=0)
            kept = best >= 0.5
            regions = image_proposals.proposal_boxes[kept]
            image_features = [
                features[name][index : index + 1] for name in ("p2", "p3", "p4", "p5")
            ]
            pooled = model.roi_heads.box_pooler(image_features, [regions])
            logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
            classes = truth.gt_classes[which[kept]]
            scores = logits.softmax(dim=1)[torch.arange(len(classes)), classes]
            if not agnostic:
                deltas = deltas.view(len(deltas), 10, 4)[torch.arange(len(classes)), classes]
            decoded = model.roi_heads.box_predictor.box2box_transform.apply_deltas(
                deltas, regions.tensor
            )
            matched = truth.gt_boxes[which[kept]]
            expected = pairwise_iou(Boxes(decoded), matched).diagonal()
            torch.testing.assert_close(outputs[index]["positives"]["scores"], scores)
            torch.testing.assert_close(outputs[index]["positives"]["ious"], expected)
            count += len(classes)
    assert count > 5


def test_every_composition_trains():
    model = build_model(rcnn_cfg())
    images = batch()
    names = {
        kind: [n for n, x in registry.items() if "softmax" in x.activations]
        for kind, registry in (
            ("classification", CLASSIFICATION_LOSSES),
            ("localization", LOCALIZATION_LOSSES),
            ("couplings", COUPLINGS),
        )
    }
    assert len(names["localization"]) >= 10 and len(names["couplings"]) >= 5
    for classification in names["classification"]:
        for localization in names["localization"]:
            couplings = [c for c in names["couplings"] if not refusal(
                classification, localization, [c]
            )]  # fmt: skip
            cfg = rcnn_cfg(
                CLASSIFICATION=classification, LOCALIZATION=localization, COUPLINGS=couplings
            )
            model.roi_heads.box_predictor.criterion = type(model).build_criterion(cfg)
            losses, gradients = step(model, images, logged := {})
            added = {f"loss_{c}" for c in couplings if not COUPLINGS[c].takes_localization}
            assert added <= losses.keys()
            assert all(loss.isfinite() for loss in losses.values())
            assert all(gradient.isfinite().all() for gradient in gradients.values())
            assert logged["roi_head/num_fg_samples"] > 0


def test_what_cannot_go_together_is_refused():
    for name in ("sigmoid_focal", "ape", "rank_sort"):
        with pytest.raises(ValueError, match=f"'{name}' works on sigmoid heads, but CorrdetRCNN"):
            build_model(rcnn_cfg(CLASSIFICATION=name))
    cfg = rcnn_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NAME must be 'CorrdetROIHeads'"):
        build_model(cfg)
    cfg = rcnn_cfg()
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p9"]
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.IN_FEATURES: unknown output .* 'p9'"):
        build_model(cfg)
    cfg = rcnn_cfg()
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 3.0
    with pytest.raises(ValueError, match="set MODEL.CRITERION.LOCALIZATION_WEIGHT, which is 1.0"):
        build_model(cfg)


def test_many_objects_and_tiny_ones():
    model = build_model(rcnn_cfg(COUPLINGS=("correlation", "harmonic")))
    images = batch((300, 2))
    images[1]["instances"].gt_boxes.tensor[:, 2:] = (
        images[1]["instances"].gt_boxes.tensor[:, :2] + 1
    )
    losses, gradients = step(model, images)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


class TestRegionProposals:
    def cfg(self, **criterion):
        cfg = rcnn_cfg()
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CorrdetRPN"
        for key, value in criterion.items():
            cfg.MODEL.RPN_CRITERION[key] = value
        return cfg

    @pytest.mark.parametrize("num_objects", [(3, 1), (0, 4), (0, 0)])
    @pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 3.0)])
    def test_losses_and_gradients_are_detectron2s(self, num_objects, weights):
        cfg = self.cfg()
        cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = weights
        ours = build_model(cfg)
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
        theirs = theirs_of(cfg, ours)
        images = batch(num_objects)
        (losses, gradients), (expected, expected_gradients) = (
            step(ours, images),
            step(theirs, images),
        )
        assert losses.keys() == expected.keys()
        for name in losses:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, expected_gradients[name], rtol=1e-3, atol=1e-5, msg=name
            )

    def test_harmonic_detection(self):
        cfg = self.cfg(
            LOCALIZATION="smooth_l1_harmonic_iou",
            COUPLINGS=("harmonic", "task_contrastive"),
        )
        plain, _ = step(build_model(self.cfg()), batch())
        torch.manual_seed(0)
        losses, gradients = step(build_model(cfg), batch())
        assert losses.keys() == plain.keys() | {"loss_rpn_task_contrastive"}
        assert all(loss.isfinite() for loss in losses.values())
        assert all(gradient.isfinite().all() for gradient in gradients.values())

    def test_detectron2s_keys_that_would_do_nothing(self):
        cfg = self.cfg()
        cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "giou"
        with pytest.raises(ValueError, match="CorrdetRPN takes its losses from MODEL.RPN_CRIT"):
            build_model(cfg)
        cfg.MODEL.RPN_CRITERION.LOCALIZATION = "giou"
        build_model(cfg)
        cfg = self.cfg()
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "CorrdetRpn"
        with pytest.raises(ValueError, match="unknown name 'CorrdetRpn'; did you mean 'CorrdetRPN"):
            build_model(cfg)

    def test_options_are_its_own(self):
        cfg = self.cfg()
        cfg.MODEL.CRITERION.SMOOTH_L1.BETA = 0.5
        model = build_model(cfg)
        rpn = model.proposal_generator.criterion.localization.options
        assert rpn["beta"] == 0.0 and model.criterion.localization.options["beta"] == 0.5

    def test_refusals_name_the_key(self):
        with pytest.raises(ValueError, match="^MODEL.RPN_CRITERION: the coupling 'harmonic' needs"):
            build_model(self.cfg(CLASSIFICATION="ap", COUPLINGS=("harmonic",)))
        with pytest.raises(ValueError, match="^MODEL.RPN_CRITERION.LOCALIZATION: unknown"):
            build_model(self.cfg(LOCALIZATION="smoothl1"))
