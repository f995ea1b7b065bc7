"""Sigmoid box heads, heads that train on all proposals, and the balanced loss of masks."""

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage

from corrdet.errors import ConfigError
from corrdet.modeling import build_test_time_augmentation
from corrdet.modeling.rcnn.mask_loss import MaskLoss
from tests.helpers.detectors import batch_with_masks as batch
from tests.helpers.detectors import hostile_batches
from tests.helpers.rcnn import CASCADE, RANKED, build_rcnn, rcnn_cfg, step, train_through

pytestmark = pytest.mark.slow

SIGMOID = ["MODEL.ROI_BOX_HEAD.ACTIVATION", "sigmoid"]
FOCAL = [*SIGMOID, "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal"]


@pytest.mark.parametrize("cascade", [[], CASCADE], ids=["faster", "cascade"])
def test_of_a_sigmoid_all_scores_start_at_the_prior(cascade):
    model = build_rcnn(*FOCAL, *cascade, "MODEL.ROI_BOX_HEAD.PRIOR_PROB", 0.2)
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if cascade else [predictors]:
        assert predictor.cls_score.weight.shape == (10, 32)
        torch.testing.assert_close(predictor.cls_score.bias.sigmoid(), torch.full((10,), 0.2))
    losses, gradients = step(model, batch())
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients.values()])
    for name, parameter in model.named_parameters():
        if "cls_score" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_detections_of_a_sigmoid_are_those_of_plain_code():
    model = build_rcnn(*FOCAL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0102).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.05)
    images = [{k: v for k, v in image.items() if k != "instances"} for image in batch()]
    with torch.no_grad():
        outputs = model(images)
        found = model.preprocess_image(images)
        features = model.backbone(found.tensor)
        proposals, _ = model.proposal_generator(found, features, None)
        for index, output in enumerate(outputs):
            heads, regions = model.roi_heads, proposals[index].proposal_boxes
            inputs = [features[name][index : index + 1] for name in ("p2", "p3", "p4", "p5")]
            logits, deltas = heads.box_predictor(
                heads.box_head(heads.box_pooler(inputs, [regions]))
            )
            boxes = heads.box_predictor.box2box_transform.apply_deltas(deltas, regions.tensor)
            height, width = found.image_sizes[index]
            boxes = boxes.view(-1, 4)
            boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
            boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
            scores = logits.sigmoid().flatten()
            kept = torch.nonzero(scores > 0.0102)[:, 0]
            classes = kept % 10
            order = batched_nms(boxes[kept], scores[kept], classes, 0.5)[:100]
            detected = output["instances"]
            assert 5 < len(detected) == len(order)
            torch.testing.assert_close(detected.scores, scores[kept][order])
            assert torch.equal(detected.pred_classes, classes[order])
            torch.testing.assert_close(detected.pred_boxes.tensor, boxes[kept][order])


@pytest.mark.parametrize("cascade", [[], CASCADE], ids=["faster", "cascade"])
def test_views_of_an_image_are_merged(cascade):
    cfg = rcnn_cfg(True, [*FOCAL, *cascade, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.009])
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (64, 96), 128
    torch.manual_seed(0)
    model = build_test_time_augmentation(cfg, build_model(cfg).eval())
    images = [{k: v for k, v in image.items() if k != "instances"} for image in batch((2,))]
    with torch.no_grad():
        (output,) = model(images)
    assert len(output["instances"]) > 0 and output["instances"].has("pred_masks")


@pytest.mark.parametrize("cascade", [[], CASCADE], ids=["faster", "cascade"])
def test_ranking_losses_train_on_all_anchors_and_proposals(cascade):
    model = build_rcnn(*RANKED, *cascade)
    images = batch((3, 1))
    seen = {}

    def keep(name):
        def hook(module, arguments, _):
            seen.setdefault(name, []).append(arguments[0])

        return hook

    model.proposal_generator.criterion.register_forward_hook(keep("rpn"))
    predictors = model.roi_heads.box_predictor
    with EventStorage() as storage:
        torch.manual_seed(0)
        plain = model.proposal_generator.label_and_sample_anchors(
            [level for level in model.proposal_generator.anchor_generator(
                list(model.backbone(model.preprocess_image(images).tensor).values()))],
            [image["instances"] for image in images],
        )[0]  # fmt: skip
        losses = model(images)
        assert (
            storage.latest()["rpn/num_pos_anchors"][0]
            == sum((labels == 1).sum().item() for labels in plain) / 2
        )
    (regions,) = seen["rpn"]
    ignored = sum((labels == -1).sum().item() for labels in plain)
    assert (regions.labels < 0).sum() == ignored and len(regions.labels) > 3000
    # Of the box losses, the value is that of the ranking.
    suffixes = [f"_stage{stage}" for stage in range(3)] if cascade else [""]
    for suffix in suffixes:
        torch.testing.assert_close(losses[f"loss_box_reg{suffix}"], losses[f"loss_cls{suffix}"])
    torch.testing.assert_close(losses["loss_rpn_loc"], losses["loss_rpn_cls"])
    assert all(p.normalizer is not None for p in (predictors if cascade else [predictors]))


def test_without_sampling_all_proposals_are_trained_on_in_their_order():
    model = build_rcnn(*FOCAL, "MODEL.ROI_HEADS.SAMPLE", False)
    images = batch((3, 0))
    targets = [image["instances"] for image in images]
    with EventStorage(), torch.no_grad():
        found = model.preprocess_image(images)
        features = model.backbone(found.tensor)
        proposals, _ = model.proposal_generator(found, features, targets)
        labelled = model.roi_heads.label_and_sample_proposals(proposals, targets)
        count = len(proposals[0]) + 3  # ground truth is among them
        assert len(labelled[0]) == count and len(labelled[1]) == len(proposals[1])
        assert (labelled[1].gt_classes == 10).all()
        assert torch.equal(labelled[0].gt_classes[-3:], targets[0].gt_classes)
        assert torch.equal(
            labelled[0].proposal_boxes.tensor[:-3], proposals[0].proposal_boxes.tensor
        )
        # Sums are divided by the positives.
        predictions = (
            torch.zeros(count + len(labelled[1]), 10),
            torch.zeros(count + len(labelled[1]), 40),
        )
        box_predictor = model.roi_heads.box_predictor
        losses = box_predictor.losses(predictions, labelled)
        matched = box_predictor.match_predictions(predictions, labelled)
        assert len(matched.positives) >= 3
        expected = box_predictor.criterion(matched, len(matched.positives))
        torch.testing.assert_close(losses["loss_cls"], expected["loss_cls"])


BALANCED = {"LOSS": "dice", "WEIGHTED_BY": "score", "SELF_BALANCE": True, "MAX_MASKS": 4}
BALANCED = [x for name, v in BALANCED.items() for x in (f"MODEL.ROI_MASK_HEAD.{name}", v)]


@pytest.mark.parametrize("masks", [False, True], ids=["faster", "mask"])
@pytest.mark.parametrize("overrides", [[], FOCAL, [*RANKED, *BALANCED]], ids=["", "focal", "rs"])
def test_hostile_batches(masks, overrides):
    batches = hostile_batches()
    for images in batches.values():
        for image in images:
            # The first mask is empty, the second outside of its box.
            instances = image["instances"]
            pixels = torch.ones(len(instances), *instances.image_size, dtype=torch.bool)
            pixels[0:1] = False
            pixels[1:2, 5:] = False
            instances.gt_masks = BitMasks(pixels)
    train_through(build_rcnn(*overrides, masks=masks), batches)


class TestMasks:
    def test_as_it_is_by_default_it_is_detectron2s(self):
        model, images = build_rcnn(masks=True), batch()
        assert model.roi_heads.mask_loss is None
        expected, expected_gradients = step(model, images)
        model.roi_heads.mask_loss = MaskLoss()
        losses, gradients = step(model, images)
        torch.testing.assert_close(losses["loss_mask"], expected["loss_mask"])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], msg=name)

    @pytest.mark.parametrize("cascade", [[], CASCADE], ids=["mask", "cascade"])
    def test_balanced(self, cascade):
        model = build_rcnn(*RANKED, *cascade, *BALANCED, masks=True)
        for num_objects in ((3, 2), (0, 2), (0, 0)):
            losses, gradients = step(model, batch(num_objects))
            name = "loss_cls_stage0" if cascade else "loss_cls"
            torch.testing.assert_close(losses["loss_mask"], losses[name])
            assert all(gradient.isfinite().all() for gradient in gradients.values())
            trained = gradients["roi_heads.mask_head.predictor.weight"].abs().sum()
            assert (trained > 0) == (sum(num_objects) > 0)

    def test_values_are_those_of_plain_code(self):
        masks = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
        targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        for mask, target, loss in zip(
            masks, targets, MaskLoss("dice").each(masks, targets), strict=True
        ):
            p = mask.sigmoid()
            dice = 2 * sum(p * target) / (sum(p * p) + sum(target * target) + 1e-5)
            torch.testing.assert_close(loss, 1 - dice)

    def test_at_most_so_many(self):
        regions = [batch((count,))[0]["instances"] for count in (5, 0, 9)]
        chosen = MaskLoss(max_masks=6).chosen(regions)
        assert sum(map(len, chosen)) == 6 and len(chosen) == 3
        assert MaskLoss(max_masks=14).chosen(regions) is regions

    def test_weights_are_scores(self):
        """What is scored 0 has no part in it."""
        model, images = build_rcnn(masks=True), batch((3, 0))
        heads, targets = model.roi_heads, [image["instances"] for image in images]
        with EventStorage(), torch.no_grad():
            features = model.backbone(model.preprocess_image(images).tensor)
            proposals = [instances[:] for instances in targets]
            for regions in proposals:
                regions.proposal_boxes = regions.gt_boxes
            arguments = (
                heads.mask_head,
                heads.mask_pooler,
                [features[name] for name in heads.mask_in_features],
            )
            weighted = MaskLoss(weighted_by="score")
            proposals[1].own_scores = torch.zeros(0)
            values = []
            for scores in ([0.5, 0.0, 0.0], [0.0, 0.0, 0.2], [0.5, 0.0, 0.2]):
                proposals[0].own_scores = torch.tensor(scores)
                values.append(weighted(*arguments, proposals, 10, torch.ones(())))
        torch.testing.assert_close(values[2], (0.5 * values[0] + 0.2 * values[1]) / 0.7)
        assert not values[0].isclose(values[1])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["MODEL.CRITERION.CLASSIFICATION", "rank_sort"],
            "'rank_sort' works on sigmoid heads, but CorrdetRCNN has a softmax head: set "
            "MODEL.ROI_BOX_HEAD.ACTIVATION to 'sigmoid'",
        ),
        (SIGMOID, "works on softmax heads, but CorrdetRCNN has a sigmoid head"),
        (["MODEL.ROI_BOX_HEAD.ACTIVATION", "softmaks"], "ACTIVATION: .* did you mean 'softmax'"),
        (["MODEL.ROI_BOX_HEAD.PRIOR_PROB", 1.0], r"PRIOR_PROB must be .*in \(0, 1\), got 1.0"),
        (["MODEL.RPN.SAMPLE", False], "MODEL.RPN.SAMPLE is False, but nothing reads it"),
        (["MODEL.RPN.PRIOR_PROB", 0.1], "MODEL.RPN.PRIOR_PROB is 0.1, but nothing reads it"),
        (["MODEL.ROI_MASK_HEAD.LOSS", "dise"], "ROI_MASK_HEAD.LOSS: .* did you mean 'dice'"),
        (["MODEL.ROI_HEADS.NAME", "CorrdetHeads"], "NAME must be .*'CorrdetCascadeROIHeads'"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        build_model(rcnn_cfg(overrides=overrides))


def test_prior_probability_of_region_proposals():
    overrides = ["MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN", "MODEL.RPN.PRIOR_PROB", 0.01]
    classifier = build_rcnn(*overrides).proposal_generator.rpn_head.objectness_logits
    torch.testing.assert_close(classifier.bias.sigmoid(), torch.full_like(classifier.bias, 0.01))
    bias = build_rcnn().proposal_generator.rpn_head.objectness_logits.bias
    assert (bias == 0).all()
