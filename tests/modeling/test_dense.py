"""ATSS, PAA, PAA*, FCOS and FoveaBox: what they train on, detect and refuse."""

import itertools
import math

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch.nn import functional as F

from corrdet.engine.configuration import ConfigError
from corrdet.matching import atss_matching, paa_candidates, paa_matching, paa_star_costs
from corrdet.modeling import centerness, score_voting
from corrdet.ops import elementwise_iou
from tests.helpers.detectors import (
    ONE_PRIOR,
    batch,
    build_dense,
    check_detections,
    dense_cfg,
    hostile_batches,
    is_sound,
    losses_in_training,
    match,
    plain_detections,
    plain_predictions,
    possible_quality,
    step,
)

every_detector = pytest.mark.parametrize("name", ONE_PRIOR)


@pytest.mark.slow
class TestTraining:
    @every_detector
    def test_every_kind_of_loss(self, name):
        for classification, quality in itertools.product(
            ("sigmoid_focal", "quality_focal", "ape", "rank_sort"), ("", possible_quality(name))
        ):
            model = build_dense(
                name,
                "MODEL.CRITERION.CLASSIFICATION", classification,
                "MODEL.CRITERION.COUPLINGS", ("correlation",),
                "MODEL.DENSE.QUALITY", quality,
            )  # fmt: skip
            losses = step(model, batch((3, 2)))
            expected = {"loss_cls", "loss_box_reg", "loss_correlation"}
            assert losses.keys() == (expected | {"loss_quality"} if quality else expected)
            assert is_sound(model, losses), (classification, losses)
            # DistributedDataParallel stops where a parameter takes no part.
            assert all(p.grad is not None for p in model.parameters())
            for branch in ("cls_score", "bbox_pred", "quality"):
                layer = getattr(model.head, branch)
                assert layer is None or layer.weight.grad.abs().sum() > 0, branch

    @every_detector
    def test_other_norms_and_precision(self, name):
        model = build_dense(
            name, "MODEL.DENSE.NORM", "BN", "MODEL.DENSE.QUALITY", possible_quality(name)
        )
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch())
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        assert is_sound(model, losses)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            model.inference.score_threshold = 0.0
            detections = model.eval()(batch())[0]["instances"]
        assert len(detections) > 0 and detections.pred_boxes.tensor.dtype == torch.float32

    @pytest.mark.parametrize("name", (*ONE_PRIOR, "retinanet_baseline"))
    def test_hostile_batches(self, name):
        overrides = ["MODEL.DENSE.QUALITY", possible_quality(name)]
        if name.startswith("retinanet"):
            overrides = ["MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NORM", ""]
        model = build_dense(name, *overrides)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for case, images in hostile_batches().items():
            losses = step(model, images, logged := {})
            assert is_sound(model, losses), (case, losses)
            assert all(p.grad is not None for p in model.parameters()), case
            num_positives = logged["num_pos_anchors"]
            if case == "no objects":
                assert num_positives == 0
            elif name.startswith(("atss", "paa", "retinanet")) or case == "1000 objects":
                # A small object may lie between the locations of FCOS and FoveaBox.
                assert num_positives > 0, case
            optimizer.step()
            with torch.no_grad():
                outputs = model.eval()(images)
            assert all(output.keys() == {"instances", "positives"} for output in outputs)
            assert outputs[0]["positives"]["ious"].isfinite().all()

    @every_detector
    def test_the_loss_falls(self, name, tiny_digits):
        losses = losses_in_training(tiny_digits, lambda *data: dense_cfg(name, *data), 30)
        totals = [sum(step_losses.values()) for step_losses in losses]
        assert sum(totals[-3:]) < 0.85 * sum(totals[:3]), totals

    def test_the_normalizer_is_the_mean_over_all_processes(self, monkeypatch):
        model = build_dense("atss_baseline")
        cpu = torch.device("cpu")
        assert [model.normalizer(count, cpu) for count in (0, 1, 7)] == [1.0, 1.0, 7.0]

        def all_reduce(total):
            total += 5  # of the other process

        monkeypatch.setattr("corrdet.modeling.core.training.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("corrdet.modeling.core.training.dist.all_reduce", all_reduce)
        assert [model.normalizer(count, cpu).item() for count in (0, 4)] == [2.5, 4.5]


class TestFCOSIsDetectron2s:
    def pair(self):
        """corrdet's and Detectron2's FCOS with the same weights."""
        ours = build_dense(
            "fcos_baseline",
            "MODEL.FCOS.REGRESSION_RANGE", 8.0,
            "MODEL.DENSE.QUALITY", "centerness",
            "MODEL.DENSE.SCORE_THRESH_TEST", 0.08,
        )  # fmt: skip
        cfg = dense_cfg("fcos_baseline")
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in cfg.MODEL.DENSE.IN_FEATURES]
        theirs = FCOS(
            backbone=backbone,
            head=FCOSHead(
                input_shape=shapes,
                num_classes=10,
                conv_dims=[32],
                norm=lambda channels: torch.nn.GroupNorm(min(32, channels), channels),
            ),
            head_in_features=cfg.MODEL.DENSE.IN_FEATURES,
            num_classes=10,
            test_score_thresh=0.08,
            test_nms_thresh=0.6,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
        weights = ours.state_dict()
        renamed = {key.replace("quality", "ctrness"): value for key, value in weights.items()}
        theirs.load_state_dict(renamed, strict=True)
        # Theirs divides by a running mean of the positives.
        theirs._ema_update = lambda name, value, *rest: value
        return ours, theirs

    def test_losses_and_gradients(self):
        ours, theirs = self.pair()
        names = {"loss_cls": "cls", "loss_box_reg": "loc", "loss_quality": "ctr"}
        for seed in range(3):
            losses, expected = (step(model, batch((3, 2), seed)) for model in (ours, theirs))
            assert losses.keys() == names.keys()
            for name, other in names.items():
                torch.testing.assert_close(losses[name], expected[f"loss_fcos_{other}"])
            for (name, parameter), reference in zip(
                ours.named_parameters(), theirs.parameters(), strict=True
            ):
                torch.testing.assert_close(
                    parameter.grad, reference.grad, rtol=1e-3, atol=1e-6, msg=name
                )

    def test_detections(self):
        images = batch()
        with torch.no_grad():
            results, expected = (model.eval()(images) for model in self.pair())
        for result, other in zip(results, expected, strict=True):
            result, other = result["instances"], other["instances"]
            assert len(other) > 5
            for field in ("scores", "pred_classes"):
                torch.testing.assert_close(result.get(field), other.get(field))
            torch.testing.assert_close(result.pred_boxes.tensor, other.pred_boxes.tensor)

    def test_levels(self):
        matcher = build_dense("fcos_baseline", "MODEL.FCOS.REGRESSION_RANGE", 8.0).matcher
        ranges = matcher.function.keywords["regression_ranges"]
        inf = math.inf
        assert ranges == [(0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, inf)]

    def test_learned_scales_belong_to_the_exponential_coding(self):
        assert build_dense("fcos_baseline").head.scales is None
        model = build_dense("fcos_baseline", "MODEL.FCOS.BOX_CODING", "exponential")
        losses = step(model, batch())
        assert is_sound(model, losses) and model.head.scales.grad.abs().sum() > 0


def plain_losses(labels, logits, boxes, gt_boxes, weight):
    """Focal and GIoU loss by fvcore, of all images, over the number of positives."""
    positive = labels < 10
    targets = F.one_hot(labels, 11)[..., :10].float()
    count = max(positive.sum().item(), 1)
    classification = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="sum")
    localization = giou_loss(boxes[positive], gt_boxes[positive], reduction="sum")
    return classification / count, weight * localization / count


def plain_atss(priors, images, per_level):
    """Labels (N, R) and boxes (N, R, 4) of a batch, image by image."""
    objects = [image["instances"] for image in images]
    matches = [
        atss_matching(priors, o.gt_boxes.tensor, o.gt_classes, per_level, 10) for o in objects
    ]
    return (torch.stack(values) for values in zip(*matches, strict=True))


class TestATSS:
    def test_losses(self):
        model = build_dense("atss_baseline", "MODEL.DENSE.QUALITY", "centerness")
        images = batch((4, 1), seed=1)
        priors, levels, logits, boxes, quality = plain_predictions(model, images)
        assert isinstance(model.box2box_transform, Box2BoxTransform)
        assert model.box2box_transform.weights == (10.0, 10.0, 5.0, 5.0)
        # 4 strides in the quick configs, around the middle of each cell.
        assert priors[0].tolist() == [4 - 16, 4 - 16, 4 + 16, 4 + 16]
        labels, gt_boxes = plain_atss(priors, images, levels.bincount().tolist())
        losses = step(model, images)
        classification, localization = plain_losses(labels, logits, boxes, gt_boxes, 2.0)
        torch.testing.assert_close(losses["loss_cls"], classification)
        torch.testing.assert_close(losses["loss_box_reg"], localization)
        positive = labels < 10
        targets = centerness(priors.expand(2, -1, -1)[positive], gt_boxes[positive])
        expected = F.binary_cross_entropy_with_logits(quality[positive], targets)
        torch.testing.assert_close(losses["loss_quality"], expected)

    def test_several_anchors_of_a_location(self):
        model = build_dense(
            "atss_baseline", "MODEL.DENSE.QUALITY", "centerness", "MODEL.DENSE.SCALES_PER_OCTAVE", 2
        )
        images = batch((4, 1), seed=1)
        with torch.no_grad():
            _, features, predictions = model.predict(images)
        anchors = [boxes.tensor for boxes in model.anchor_generator(features)]
        priors = torch.cat(anchors)
        side = 32 * 2**0.5
        expected = [[4 - 16, 4 - 16, 4 + 16, 4 + 16], [4 - side / 2] * 2 + [4 + side / 2] * 2]
        torch.testing.assert_close(priors[:2], torch.tensor(expected))
        # Anchor by anchor in the channels, location by location in the priors.
        by_anchor = [[level.unflatten(1, (2, -1)) for level in part] for part in predictions]
        logits, deltas, quality = (
            torch.cat([level.permute(0, 3, 4, 1, 2).flatten(1, 3) for level in part], dim=1)
            for part in by_anchor
        )
        boxes = torch.stack([model.box2box_transform.apply_deltas(d, priors) for d in deltas])
        labels, gt_boxes = plain_atss(priors, images, [len(level) for level in anchors])
        losses = step(model, images)
        classification, localization = plain_losses(labels, logits, boxes, gt_boxes, 2.0)
        torch.testing.assert_close(losses["loss_cls"], classification)
        torch.testing.assert_close(losses["loss_box_reg"], localization)
        positive = labels < 10
        targets = centerness(priors.expand(2, -1, -1)[positive], gt_boxes[positive])
        expected = F.binary_cross_entropy_with_logits(quality[positive][:, 0], targets)
        torch.testing.assert_close(losses["loss_quality"], expected)

    def test_the_box_loss_weighted_by_centerness(self):
        """The weighted sum over the sum of the weights; without the branch, as in the thesis."""
        model = build_dense(
            "atss_baseline", "MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY", "centerness"
        )
        images = batch((4, 1), seed=1)
        matched = match(model, images).matched
        total = weights = 0.0
        for prior, box, gt_box in zip(
            matched.priors.tolist(), matched.boxes.tolist(), matched.gt_boxes.tolist(), strict=True
        ):
            x, y = (prior[0] + prior[2]) / 2, (prior[1] + prior[3]) / 2
            horizontal = sorted((x - gt_box[0], gt_box[2] - x))
            vertical = sorted((y - gt_box[1], gt_box[3] - y))
            weight = math.sqrt(horizontal[0] / horizontal[1] * vertical[0] / vertical[1])
            total += weight * giou_loss(torch.tensor([box]), torch.tensor([gt_box])).item()
            weights += weight
        losses = step(model, images)
        assert losses["loss_box_reg"].item() == pytest.approx(2 * total / weights, rel=1e-5)
        assert "loss_quality" not in losses

    def test_detections_and_positives(self):
        model = build_dense(
            "atss_baseline", "MODEL.DENSE.QUALITY", "centerness", "TEST.DETECTIONS_PER_IMAGE", 20
        ).eval()
        model.inference.score_threshold, model.inference.topk = 0.06, 50
        images = batch()
        priors, levels, logits, boxes, quality = plain_predictions(model, images)
        with torch.no_grad():
            outputs = model(images)
        matched = match(model, images).matched
        scores = (logits.sigmoid() * quality.sigmoid()[..., None]).sqrt()
        for index, output in enumerate(outputs):
            expected = plain_detections(
                scores[index], boxes[index], levels, 0.06, 50, 0.6, 20, images[index]
            )
            check_detections(output["instances"], *expected[:3])
            # What the positives would be ranked by, and how good their boxes are.
            own = matched.positives[matched.image_ids == index]
            prior_indices = own - index * len(priors)
            torch.testing.assert_close(
                output["positives"]["scores"], scores[index][prior_indices, matched.labels[own]]
            )
            ious = elementwise_iou(
                boxes[index][prior_indices], matched.gt_boxes[matched.image_ids == index]
            )
            torch.testing.assert_close(output["positives"]["ious"], ious)
            assert len(own) > 1


class TestPAA:
    @pytest.mark.parametrize(
        ("name", "normalize"),
        [("paa_baseline", True), ("paa_star_ape", True), ("paa_star_ape", False)],
    )
    def test_losses(self, name, normalize):
        model = build_dense(
            name,
            "MODEL.PAA.NORMALIZE", normalize,
            "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal",
            "MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY", "none",
            "MODEL.DENSE.QUALITY", "iou",
            "MODEL.DENSE.QUALITY_WEIGHT", 0.5,
            "MODEL.PAA.COST_LOCALIZATION_WEIGHT", 0.2,
        )  # fmt: skip
        images = batch((4, 2), seed=2)
        priors, levels, logits, boxes, quality = plain_predictions(model, images)
        labels = torch.full(logits.shape[:2], 10)
        all_gt_boxes = torch.zeros_like(boxes)
        for index, image in enumerate(images):
            gt_boxes = image["instances"].gt_boxes.tensor
            gt_classes = image["instances"].gt_classes
            matched = paa_candidates(priors, gt_boxes)
            own = torch.nonzero(matched >= 0)[:, 0]
            classes, targets = gt_classes[matched[own]], gt_boxes[matched[own]]
            if name == "paa_star_ape":
                scores = logits[index, own, classes].sigmoid()
                ious = elementwise_iou(boxes[index, own], targets)
                costs = paa_star_costs(scores, ious, matched[own], len(gt_boxes), normalize)
            else:
                one_hot = F.one_hot(classes, 10).float()
                focal = sigmoid_focal_loss(logits[index, own], one_hot, alpha=0.25, gamma=2)
                costs = focal.sum(dim=1) + 0.2 * giou_loss(boxes[index, own], targets)
            positive = paa_matching(costs, matched[own], levels[own], len(gt_boxes), 5)
            labels[index, own[positive]] = classes[positive]
            all_gt_boxes[index, own] = targets
        assert (labels < 10).sum(dim=1).gt(1).all()
        losses = step(model, images)
        weight = 2.0 if name == "paa_star_ape" else 1.3
        classification, localization = plain_losses(labels, logits, boxes, all_gt_boxes, weight)
        torch.testing.assert_close(losses["loss_cls"], classification)
        torch.testing.assert_close(losses["loss_box_reg"], localization)
        positive = labels < 10
        ious = elementwise_iou(boxes[positive], all_gt_boxes[positive])
        expected = F.binary_cross_entropy_with_logits(quality[positive], ious)
        torch.testing.assert_close(losses["loss_quality"], 0.5 * expected)
        # The boxes learn nothing from the branch that judges them.
        with EventStorage():
            loss = model(images)["loss_quality"]
        (gradient,) = torch.autograd.grad(loss, model.head.bbox_pred.weight, allow_unused=True)
        assert gradient is None

    def test_score_voting(self):
        images = batch()
        for vote in (True, False):
            model = build_dense("paa_baseline", "MODEL.PAA.SCORE_VOTING", vote).eval()
            model.inference.score_threshold = 0.0101
            _, levels, logits, boxes, _ = plain_predictions(model, images)
            with torch.no_grad():
                outputs = model(images)
            for index, output in enumerate(outputs):
                kept, scores, classes, *candidates = plain_detections(
                    logits[index].sigmoid(), boxes[index], levels, 0.0101, 1000, 0.6, 100, None
                )
                if vote:
                    voted = score_voting(kept, classes, *candidates)
                    assert (voted - kept).abs().max() > 0.001
                    kept = voted
                check_detections(output["instances"], kept, scores, classes)


class TestFoveaBox:
    def test_levels_and_units(self):
        overrides = ("MODEL.FOVEABOX.BASE_SCALE", 2.0, "MODEL.FOVEABOX.SIGMA", 0.4)
        model = build_dense("foveabox_baseline", *overrides)
        # Half of the paper's: 16 pixels on P3, in units of 8.
        ranges = model.matcher.function.keywords["scale_ranges"]
        assert ranges[:2] == [(0.0, 32.0), (16.0, 64.0)]
        assert ranges[-1] == (128.0, math.inf)
        priors = plain_predictions(model, batch())[0]
        assert (priors[0, 2:] - priors[0, :2]).tolist() == [8.0, 8.0]
        # The middle 40 % of a box of scale 24, on the two levels for it: 9.6 pixels, 1 location.
        gt_boxes, classes = torch.tensor([[32.0, 32, 56, 56]]), torch.tensor([3])
        counts = [144, 36, 9, 4, 1]
        labels, _ = model.matcher.function(priors, gt_boxes, classes, counts, num_classes=10)
        assert [(level < 10).sum().item() for level in labels.split(counts)] == [1, 1, 0, 0, 0]
        # The deltas are regressed as such: smooth L1 on log distances.
        losses = step(model, batch((3, 1)))
        assert losses["loss_box_reg"].item() > 0


@pytest.mark.parametrize("name", ["atss_baseline", "retinanet_baseline"])
def test_levels_of_positives(name):
    model = build_dense(name)
    images = batch((9, 9), seed=1, size=192)
    _, features, predictions = model.predict(images)
    anchors = model.anchor_generator(features)
    batched = model.match(anchors, predictions, [image["instances"] for image in images])
    levels = [level for level, boxes in enumerate(anchors) for _ in range(len(boxes))]
    expected = [levels[p % len(levels)] for p in batched.matched.positives.tolist()]
    assert batched.matched.levels.tolist() == expected and len(set(expected)) > 1
    assert (batched.matched.num_images, batched.matched.num_levels) == (2, len(anchors))
    centers = torch.cat([boxes.get_centers() for boxes in anchors])
    priors = batched.matched.priors
    places = batched.matched.positives % len(levels)
    torch.testing.assert_close((priors[:, :2] + priors[:, 2:]) / 2, centers[places])


@pytest.mark.slow
def test_names_of_weights():
    common = {
        f"head.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    towers = {
        f"head.{tower}.{index}.{kind}"
        for tower in ("cls_subnet", "bbox_subnet")
        for index in (0, 1)
        for kind in ("weight", "bias")
    }
    quality = {"head.quality.weight", "head.quality.bias"}
    for name in ONE_PRIOR:
        scales = {"head.scales"} if name[:4] in ("atss", "paa_") else set()
        for branch in ("", possible_quality(name)):
            weights = build_dense(name, "MODEL.DENSE.QUALITY", branch).state_dict()
            head_keys = {key for key in weights if not key.startswith("backbone.")}
            assert head_keys == common | towers | scales | (quality if branch else set()), name


@every_detector
def test_images_without_ground_truth_have_no_positives(name):
    images = batch()
    del images[1]["instances"]
    with torch.no_grad():
        outputs = build_dense(name).eval()(images)
    assert all(output.keys() == {"instances"} for output in outputs)


@pytest.mark.parametrize("quality", ["", "iou"])
def test_paa_with_several_anchors_of_a_location(quality):
    options = ("MODEL.DENSE.SCALES_PER_OCTAVE", 3, "MODEL.DENSE.QUALITY", quality)
    model = build_dense("paa_star_ape", *options)
    losses = step(model, batch((3, 2)))
    assert is_sound(model, losses)
    assert all(p.grad is not None for p in model.parameters())
    assert model.head.bbox_pred.out_channels == 12
    model.inference.score_threshold = 0.0
    with torch.no_grad():
        outputs = model.eval()(batch())
    assert all(len(output["instances"]) > 0 for output in outputs)


class TestRefusals:
    @pytest.mark.parametrize(
        "name, overrides, message",
        [
            (
                "fcos_baseline",
                (
                    "MODEL.BACKBONE.NAME",
                    "build_retinanet_resnet_fpn_backbone",
                    "MODEL.FPN.P6_FROM",
                    "p5",
                ),
                "MODEL.FPN.P6_FROM is 'p5', but build_retinanet_resnet_fpn_backbone does not read",
            ),
            (
                "fcos_baseline",
                ("MODEL.FPN.P6_FROM", "c5"),
                "MODEL.FPN.P6_FROM: unknown name 'c5'",
            ),
            (
                "fcos_baseline",
                ("MODEL.CRITERION.LOCALIZATION", "smooth_l1"),
                "MODEL.CRITERION.LOCALIZATION: .*'smooth_l1' compares box deltas, which "
                "CorrdetFCOS does not regress; use an IoU loss",
            ),
            (
                "paa_baseline",
                ("MODEL.DENSE.QUALITY", "centerness"),
                "MODEL.DENSE.QUALITY: CorrdetPAA has no centerness, .* it can have iou",
            ),
            (
                "atss_baseline",
                ("MODEL.DENSE.QUALITY", "centernes"),
                "MODEL.DENSE.QUALITY: unknown name 'centernes'; did you mean 'centerness'",
            ),
            (
                "fcos_baseline",
                ("MODEL.FCOS.BOX_CODING", "log"),
                "MODEL.FCOS.BOX_CODING: unknown name 'log'; there are: exponential, linear",
            ),
            (
                "atss_baseline",
                ("MODEL.DENSE.NORM", "XX"),
                "MODEL.DENSE.NORM: unknown name 'XX'; there are: , BN, ",
            ),
            (
                "paa_baseline",
                ("MODEL.PAA.COST", "score"),
                "MODEL.PAA.COST: unknown name 'score'; did you mean 'scores'",
            ),
            (
                "atss_baseline",
                ("MODEL.CRITERION.CLASSIFICATION", "softmax_cross_entropy"),
                "works on softmax heads, but CorrdetATSS has a sigmoid head",
            ),
        ],
    )
    def test_names(self, name, overrides, message):
        with pytest.raises(ConfigError, match=message):
            dense_cfg(name, *overrides)

    @pytest.mark.parametrize(
        "name", ["retinanet_baseline", "faster_rcnn_baseline", "sparse_rcnn_baseline"]
    )
    def test_a_quality_that_nothing_reads(self, name):
        with pytest.raises(ConfigError, match="MODEL.DENSE.QUALITY is 'iou', but nothing reads it"):
            dense_cfg(name, "MODEL.DENSE.QUALITY", "iou")

    @pytest.mark.parametrize("name", ["faster_rcnn_baseline", "sparse_rcnn_baseline"])
    def test_bounds_that_the_detector_does_not_have(self, name):
        with pytest.raises(ConfigError, match="TEST.IMAGE_BOUNDS is for dense detectors"):
            dense_cfg(name, "TEST.IMAGE_BOUNDS", True)

    @pytest.mark.parametrize(
        "name, key, value, message",
        [
            ("atss_baseline", "DENSE.QUALITY_WEIGHT", -1.0, ">= 0, got -1.0"),
            ("atss_baseline", "DENSE.NUM_CONVS", 0, ">= 1, got 0"),
            ("atss_baseline", "DENSE.NMS_THRESH_TEST", 1.5, r"in \[0, 1\], got 1.5"),
            ("atss_baseline", "DENSE.TOPK_CANDIDATES_TEST", 0, ">= 1, got 0"),
            ("atss_baseline", "DENSE.ANCHOR_SCALE", 0.0, "> 0, got 0.0"),
            (
                "paa_baseline",
                "DENSE.BBOX_REG_WEIGHTS",
                (1.0, 1.0),
                "a list of 4 numbers, each",
            ),
            ("atss_baseline", "ATSS.TOPK", 0, ">= 1, got 0"),
            ("paa_baseline", "PAA.TOPK", 0, ">= 1, got 0"),
            ("paa_baseline", "PAA.IOU_THRESHOLD", 1.0, r"in \[0, 1\), got 1.0"),
            (
                "paa_baseline",
                "PAA.COST_LOCALIZATION_WEIGHT",
                -0.5,
                ">= 0, got -0.5",
            ),
            ("fcos_baseline", "FCOS.REGRESSION_RANGE", 0.0, "> 0, got 0.0"),
            (
                "fcos_baseline",
                "FCOS.CENTER_SAMPLING_RADIUS",
                -1.5,
                ">= 0, got -1.5",
            ),
            ("foveabox_baseline", "FOVEABOX.BASE_SCALE", 0.0, "> 0, got 0.0"),
            ("foveabox_baseline", "FOVEABOX.ETA", 0.5, ">= 1, got 0.5"),
            ("foveabox_baseline", "FOVEABOX.SIGMA", 1.5, r"in \(0, 1\], got 1.5"),
        ],
    )
    def test_values(self, name, key, value, message):
        with pytest.raises(ConfigError, match=f"MODEL.{key} must be {message}"):
            dense_cfg(name, f"MODEL.{key}", value)

    def test_a_wrong_number_of_classes_is_found_before_training(self, tiny_digits):
        from corrdet.data import load_dataset

        cfg = dense_cfg(
            "fcos_baseline",
            "DATASETS.REGISTER", tuple(tiny_digits.values()),
            "MODEL.DENSE.NUM_CLASSES", 9,
        )  # fmt: skip
        with pytest.raises(ValueError, match="MODEL.DENSE.NUM_CLASSES"):
            load_dataset(cfg, "tiny_train")
