"""SSD, DSSD and RefineDet: what they train on, detect and refuse."""

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from corrdet.data import load_dataset
from corrdet.engine.configuration import ConfigError
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.losses.registry import refusal
from corrdet.matching import refinedet_matching, ssd_matching
from corrdet.modeling.core.bounds import bound_logits
from corrdet.modeling.dense.detector import per_sample
from corrdet.ops import elementwise_iou
from tests.helpers.detectors import (
    batch,
    build_ssd,
    check_detections,
    hostile_batches,
    is_sound,
    losses_in_training,
    match,
    plain_detections,
    ssd_cfg,
    step,
)

pytestmark = pytest.mark.slow

DETECTORS = ("ssd_baseline", "dssd_baseline", "refinedet_baseline")
every_detector = pytest.mark.parametrize("name", DETECTORS)
SIGMOID = (
    "MODEL.SSD.ACTIVATION", "sigmoid",
    "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal",
    "MODEL.SSD.NEGATIVES_PER_POSITIVE", 0.0,
)  # fmt: skip


def compositions(activation):
    """Names of the losses: every pair, with every coupling that goes together with it."""
    for classification, localization in itertools.product(
        CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES
    ):
        if activation in CLASSIFICATION_LOSSES[classification].activations:
            if refusal(classification, localization):
                continue
            couplings = [
                name for name in COUPLINGS if not refusal(classification, localization, [name])
            ]
            yield classification, localization, couplings


class TestTraining:
    @every_detector
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_every_loss(self, name, activation):
        overrides = SIGMOID if activation == "sigmoid" else ()
        cfg = ssd_cfg(name, *overrides).clone()
        cfg.defrost()
        model = build_ssd(name, *overrides)
        images = batch((3, 2))
        chosen = list(compositions(activation))
        if name != "ssd_baseline":
            # The Criterion is the same: each loss once is enough.
            chosen = list({of[0]: of for of in chosen}.values())
            chosen += [of for of in compositions(activation) if of[0] == chosen[0][0]]
        for classification, localization, couplings in chosen:
            cfg.MODEL.CRITERION.CLASSIFICATION = classification
            cfg.MODEL.CRITERION.LOCALIZATION = localization
            cfg.MODEL.CRITERION.COUPLINGS = couplings
            model.criterion = model.build_criterion(cfg)
            losses = step(model, images)
            added = {f"loss_{name}" for name in couplings if not COUPLINGS[name].takes_localization}
            expected = {"loss_cls", "loss_box_reg"} | added
            if name == "refinedet_baseline":
                expected |= {"loss_arm_cls", "loss_arm_box_reg"}
            assert losses.keys() == expected
            assert is_sound(model, losses), (classification, localization, losses)
            # DistributedDataParallel stops where a parameter takes no part.
            assert all(p.grad is not None for p in model.parameters())
            head = getattr(model.head, "predictors", getattr(model.head, "object_detection", None))
            for branch in ("cls_score", "bbox_pred"):
                layers = getattr(head or model.head, branch)
                total = sum(layer.weight.grad.abs().sum() for layer in layers)
                assert total > 0, (branch, classification, localization)

    @every_detector
    def test_half_precision(self, name):
        model = build_ssd(name)
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch())
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        assert is_sound(model, losses)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            detections = model.eval()(batch())[0]["instances"]
        assert len(detections) > 0 and detections.pred_boxes.tensor.dtype == torch.float32

    @every_detector
    @pytest.mark.parametrize("overrides", [(), SIGMOID], ids=["softmax", "sigmoid"])
    def test_hostile_batches(self, name, overrides):
        model = build_ssd(name, *overrides, "MODEL.CRITERION.COUPLINGS", ("correlation",))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for case, images in hostile_batches().items():
            losses = step(model, images, logged := {})
            assert is_sound(model, losses), (case, losses)
            assert all(p.grad is not None for p in model.parameters()), case
            num_positives = logged["num_pos_anchors"]
            if case == "no objects":
                assert num_positives == 0
                # Of SSD, which takes three negatives for each positive.
                assert (losses["loss_cls"] == 0) == (overrides == ())
            else:
                # Each object has the prior that it overlaps most.
                assert num_positives > 0, case
            optimizer.step()
            with torch.no_grad():
                outputs = model.eval()(images)
            assert all(output.keys() == {"instances", "positives"} for output in outputs)
            assert outputs[0]["positives"]["ious"].isfinite().all()

    @every_detector
    def test_the_loss_falls(self, name, tiny_digits):
        losses = losses_in_training(tiny_digits, lambda *data: ssd_cfg(name, *data), 24)
        totals = [sum(step_losses.values()) for step_losses in losses]
        assert sum(totals[-3:]) < 0.7 * sum(totals[:3]), totals

    def test_of_a_sigmoid_all_scores_start_low(self):
        model = build_ssd("ssd_baseline", *SIGMOID, "MODEL.SSD.PRIOR_PROB", 0.02)
        matched = match(model.eval(), batch()).matched
        assert 0.01 < matched.logits.sigmoid().mean() < 0.04
        # Of a softmax all classes start alike.
        model = build_ssd("ssd_baseline")
        matched = match(model.eval(), batch()).matched
        assert (matched.logits.softmax(dim=1).mean(dim=0) - 1 / 11).abs().max() < 0.05


def plain_predictions(model, images):
    """Priors (R, 4), levels (R,), and of the head per output (N, R, K)."""
    with torch.no_grad():
        _, features, predictions = model.predict(images)
        outputs = [levels for levels in predictions if levels is not None]
        priors = [boxes.tensor for boxes in model.anchor_generator(features)]
        flat = []
        for levels in outputs:
            rows = []
            for level_output, boxes in zip(levels, priors, strict=True):
                count, channels, height, width = level_output.shape
                num_priors = len(boxes) // (height * width)
                split = level_output.view(count, num_priors, channels // num_priors, height, width)
                rows.append(split.permute(0, 3, 4, 1, 2).reshape(count, len(boxes), -1))
            flat.append(torch.cat(rows, dim=1))
    levels = torch.cat([torch.full((len(p),), i) for i, p in enumerate(priors)])
    return torch.cat(priors), levels, flat


def decoded(deltas, priors):
    """Boxes of deltas with SSD's variances, written out."""
    centers, sizes = (priors[..., :2] + priors[..., 2:]) / 2, priors[..., 2:] - priors[..., :2]
    centers = centers + deltas[..., :2] * 0.1 * sizes
    sizes = sizes * (deltas[..., 2:] * 0.2).exp()
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)


def encoded(boxes, priors):
    centers, sizes = (priors[..., :2] + priors[..., 2:]) / 2, priors[..., 2:] - priors[..., :2]
    gt_centers, gt_sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    moved, scaled = (gt_centers - centers) / sizes / 0.1, (gt_sizes / sizes).log() / 0.2
    return torch.cat([moved, scaled], dim=-1)


def plain_mining(labels, losses, num_classes, ratio=3):
    """Labels of one image with -1 for the negatives that are not among the most wrong ones."""
    labels = labels.clone()
    negatives = [i for i, label in enumerate(labels.tolist()) if label == num_classes]
    negatives.sort(key=lambda index: -losses[index].item())
    positives = ((labels >= 0) & (labels < num_classes)).sum().item()
    labels[negatives[ratio * positives :]] = -1
    return labels


def background_losses(logits, activation):
    if activation == "softmax":
        return -logits.softmax(dim=-1)[..., -1].log()
    return -(1 - logits.sigmoid()).log().sum(dim=-1)


def plain_losses(labels, logits, deltas, priors, gt_boxes, activation):
    """Cross entropy and smooth L1 of all images, over the number of positives."""
    num_classes = logits.shape[-1] - (activation == "softmax")
    positive = (labels >= 0) & (labels < num_classes)
    kept = labels >= 0
    if activation == "softmax":
        classification = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    else:
        targets = F.one_hot(labels.clamp(min=0), num_classes + 1)[..., :num_classes].float()
        classification = F.binary_cross_entropy_with_logits(
            logits[kept], targets[kept], reduction="sum"
        )
    targets = encoded(gt_boxes[positive], priors[positive])
    localization = F.smooth_l1_loss(deltas[positive], targets, reduction="sum")
    return classification / positive.sum(), localization / positive.sum()


class TestSSD:
    @pytest.mark.parametrize("name", ["ssd_baseline", "dssd_baseline"])
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_losses_and_mined_labels(self, name, activation):
        overrides = ()
        if activation == "sigmoid":
            overrides = (
                "MODEL.SSD.ACTIVATION", "sigmoid",
                "MODEL.CRITERION.CLASSIFICATION", "sigmoid_cross_entropy",
            )  # fmt: skip
        model = build_ssd(name, *overrides)
        images = batch((4, 1), seed=1)
        priors, _, (logits, deltas) = plain_predictions(model, images)
        labels, gt_boxes = [], []
        for index, image in enumerate(images):
            truth = image["instances"]
            image_labels, boxes = ssd_matching(
                priors, truth.gt_boxes.tensor, truth.gt_classes, num_classes=10
            )
            losses = background_losses(logits[index], activation)
            labels.append(plain_mining(image_labels, losses, 10))
            gt_boxes.append(boxes)
        labels, gt_boxes = torch.stack(labels), torch.stack(gt_boxes)
        assert (labels == 10).sum() == 3 * ((labels >= 0) & (labels < 10)).sum() > 12
        matched = match(model, images).matched
        assert torch.equal(matched.labels, labels.flatten())

        losses = step(model, images)
        batch_priors = priors.expand(2, -1, -1)
        expected = plain_losses(labels, logits, deltas, batch_priors, gt_boxes, activation)
        torch.testing.assert_close(losses["loss_cls"], expected[0])
        torch.testing.assert_close(losses["loss_box_reg"], expected[1])

    def test_without_mining_all_negatives_are_trained_on(self):
        images = batch((2, 0))
        for ratio in (0.0, 1.5):
            model = build_ssd("ssd_baseline", "MODEL.SSD.NEGATIVES_PER_POSITIVE", ratio)
            matched = match(model, images).matched
            count, negatives = len(matched.positives), (matched.labels == 10).sum()
            assert negatives == int(ratio * count) if ratio else len(matched.labels) - count
            assert (matched.labels == -1).any() == (ratio > 0)

    @pytest.mark.parametrize("name", ["ssd_baseline", "dssd_baseline"])
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_detections_and_positives(self, name, activation):
        overrides = SIGMOID if activation == "sigmoid" else ()
        model = build_ssd(name, *overrides, "TEST.DETECTIONS_PER_IMAGE", 20).eval()
        images = batch()
        priors, levels, (logits, deltas) = plain_predictions(model, images)
        scores = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)[..., :10]
        threshold = scores.flatten().sort().values[-1200].item()
        model.inference.score_threshold, model.inference.topk = threshold, 50
        with torch.no_grad():
            outputs = model(images)
            matched = match(model, images).matched
        for index, output in enumerate(outputs):
            boxes = decoded(deltas[index], priors)
            expected = plain_detections(
                scores[index], boxes, levels, threshold, 50, 0.45, 20, images[index]
            )
            check_detections(output["instances"], *expected[:3])
            own = matched.positives[matched.image_ids == index]
            prior_indices = own - index * len(priors)
            assert len(own) > 1
            torch.testing.assert_close(
                output["positives"]["scores"], scores[index][prior_indices, matched.labels[own]]
            )
            ious = elementwise_iou(
                boxes[prior_indices], matched.gt_boxes[matched.image_ids == index]
            )
            torch.testing.assert_close(output["positives"]["ious"], ious)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ssd_baseline", "dssd_baseline"])
def test_image_bounds(name):
    model = build_ssd(name, *SIGMOID, "TEST.IMAGE_BOUNDS", True).eval()
    images = batch((3, 2))
    names = {"instances", "positives", "instances_upper", "instances_lower"}
    assert all(output.keys() == names for output in model(images))
    # Levels with several priors of a location come back as they went in.
    samples, _, matched, _ = match(model, images)
    bound = bound_logits(matched, samples.predictions.logits, upper=True)
    flat = per_sample(bound, model.num_logits)
    changed = (flat != matched.logits).nonzero()
    assert set(changed[:, 0].tolist()) <= set(matched.positives.tolist()) and len(changed) > 0
    own = matched.image_ids == 0
    scores = flat[matched.positives, matched.classes][own]
    order = matched.ious[own].argsort(stable=True)
    assert (scores[order].diff() >= 0).all()


class TestRefineDet:
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_losses(self, activation):
        overrides = ()
        if activation == "sigmoid":
            overrides = (
                "MODEL.SSD.ACTIVATION", "sigmoid",
                "MODEL.CRITERION.CLASSIFICATION", "sigmoid_cross_entropy",
                "MODEL.SSD.NEGATIVES_PER_POSITIVE", 0.0,
            )  # fmt: skip
        model = with_refinements(build_ssd("refinedet_baseline", *overrides))
        images = batch((4, 1), seed=1)
        priors, _, (logits, deltas, objectness, refinements) = plain_predictions(model, images)
        refined = decoded(refinements, priors)
        # It is sure of some negatives, and not of others.
        probability = objectness.sigmoid()[..., 0]
        model.branch.min_objectness = probability.median().item()
        first, second = [], []
        for index, image in enumerate(images):
            truth = image["instances"]
            boxes = truth.gt_boxes.tensor
            labels, matched = ssd_matching(priors, boxes, torch.zeros(len(boxes)).long(), 1)
            losses = background_losses(objectness[index], "sigmoid")
            first.append((plain_mining(labels, losses, 1), matched))
            labels, matched = refinedet_matching(
                refined[index],
                probability[index],
                boxes,
                truth.gt_classes,
                10,
                min_objectness=model.branch.min_objectness,
            )
            assert (labels == -1).any() and (labels == 10).any()
            # Without mining in the second step, there still is in the first.
            if activation == "softmax":
                labels = plain_mining(labels, background_losses(logits[index], activation), 10)
            second.append((labels, matched))
        first, second = (
            [torch.stack(values) for values in zip(*matches, strict=True)]
            for matches in (first, second)
        )
        batch_priors = priors.expand(2, -1, -1)
        losses = step(model, images)
        expected = plain_losses(second[0], logits, deltas, refined, second[1], activation)
        torch.testing.assert_close(losses["loss_cls"], expected[0])
        torch.testing.assert_close(losses["loss_box_reg"], expected[1])
        expected = plain_losses(
            first[0], objectness, refinements, batch_priors, first[1], "sigmoid"
        )
        torch.testing.assert_close(losses["loss_arm_cls"], expected[0])
        torch.testing.assert_close(losses["loss_arm_box_reg"], expected[1])

    def test_refined_anchors_are_constants(self):
        model = build_ssd("refinedet_baseline").train()
        with EventStorage():
            losses = model(batch())
        for name, reaches in (("loss_box_reg", False), ("loss_arm_box_reg", True)):
            gradients = torch.autograd.grad(
                losses[name],
                model.head.anchor_refinement.bbox_pred[0].weight,
                retain_graph=True,
                allow_unused=True,
            )
            assert (gradients[0] is not None) == reaches, name

    def test_detections_and_positives(self):
        model = with_refinements(build_ssd("refinedet_baseline", "TEST.DETECTIONS_PER_IMAGE", 20))
        model.eval()
        images = batch()
        priors, levels, (logits, deltas, objectness, refinements) = plain_predictions(model, images)
        boxes = decoded(deltas, decoded(refinements, priors))
        probability = objectness.sigmoid()[..., 0]
        model.branch.min_objectness = probability.median().item()
        scores = (
            logits.softmax(-1)[..., :10] * (probability >= model.branch.min_objectness)[..., None]
        )
        threshold = scores.flatten().sort().values[-1200].item()
        model.inference.score_threshold, model.inference.topk = threshold, 50
        with torch.no_grad():
            outputs = model(images)
            matched = match(model, images).matched
        for index, output in enumerate(outputs):
            expected = plain_detections(
                scores[index], boxes[index], levels, threshold, 50, 0.45, 20, images[index]
            )
            check_detections(output["instances"], *expected[:3])
            own = matched.positives[matched.image_ids == index]
            prior_indices = own - index * len(priors)
            assert len(own) > 1
            positives = output["positives"]
            torch.testing.assert_close(
                positives["scores"], scores[index][prior_indices, matched.labels[own]]
            )
            ious = elementwise_iou(
                boxes[index][prior_indices], matched.gt_boxes[matched.image_ids == index]
            )
            torch.testing.assert_close(positives["ious"], ious)

    def test_anchors(self):
        """Of one scale on each level, with three aspect ratios (Sec. 3)."""
        model = build_ssd(
            "refinedet_baseline",
            "MODEL.REFINEDET.ANCHOR_SCALE", 4.0,
            "MODEL.REFINEDET.ASPECT_RATIOS", (0.5, 1.0, 2.0),
        )  # fmt: skip
        priors, levels, _ = plain_predictions(model, batch())
        sizes = priors[:, 2:] - priors[:, :2]
        for level, stride in enumerate((8, 16, 32, 64)):
            level_sizes = sizes[levels == level][:3]
            torch.testing.assert_close(level_sizes.prod(dim=1), torch.full((3,), 16.0 * stride**2))
            ratios = level_sizes[:, 1] / level_sizes[:, 0]
            torch.testing.assert_close(ratios, torch.tensor([0.5, 1.0, 2.0]))
        torch.testing.assert_close((priors[0, :2] + priors[0, 2:]) / 2, torch.tensor([4.0, 4.0]))


def with_refinements(model):
    """The model, with a first step that moves its anchors."""
    for conv in model.head.anchor_refinement.bbox_pred:
        torch.nn.init.normal_(conv.weight, std=0.1)
    return model


@every_detector
def test_images_without_ground_truth_have_no_positives(name):
    images = batch()
    del images[1]["instances"]
    with torch.no_grad():
        outputs = build_ssd(name).eval()(images)
    assert all(output.keys() == {"instances"} for output in outputs)


class TestRefusals:
    @pytest.mark.parametrize(
        "name, overrides, message",
        [
            (
                "ssd_baseline",
                ("MODEL.SSD.ACTIVATION", "softmx"),
                "MODEL.SSD.ACTIVATION: unknown name 'softmx'; did you mean 'softmax'",
            ),
            (
                "refinedet_baseline",
                ("MODEL.SSD.NORM", "XX"),
                "MODEL.SSD.NORM: unknown name 'XX'; there are: , BN, ",
            ),
            (
                "dssd_baseline",
                ("MODEL.CRITERION.CLASSIFICATION", "ape"),
                "'ape' works on sigmoid heads, but CorrdetDSSD has a softmax head",
            ),
            (
                "refinedet_baseline",
                ("MODEL.SSD.ACTIVATION", "sigmoid"),
                "works on softmax heads, but CorrdetRefineDet has a sigmoid head",
            ),
            (
                "ssd_baseline",
                ("TEST.IMAGE_BOUNDS", True),
                "TEST.IMAGE_BOUNDS permutes the scores of a class, .*'softmax'",
            ),
            (
                "refinedet_baseline",
                (*SIGMOID, "TEST.IMAGE_BOUNDS", True),
                "TEST.IMAGE_BOUNDS .*: expected False for CorrdetRefineDet",
            ),
        ],
    )
    def test_names(self, name, overrides, message):
        with pytest.raises(ConfigError, match=message):
            ssd_cfg(name, *overrides)

    @pytest.mark.parametrize(
        "name, key, value, message",
        [
            ("ssd_baseline", "SSD.NUM_EXTRA_LEVELS", -1, ">= 0, got -1"),
            ("dssd_baseline", "SSD.EXTRA_CHANNELS", 1, ">= 2, got 1"),
            ("ssd_baseline", "SSD.PRIOR_PROB", 1.0, r"in \(0, 1\), got 1.0"),
            ("ssd_baseline", "SSD.IOU_THRESHOLD", 1.0, r"in \[0, 1\), got 1.0"),
            (
                "ssd_baseline",
                "SSD.NEGATIVES_PER_POSITIVE",
                -3.0,
                ">= 0, got -3.0",
            ),
            (
                "ssd_baseline",
                "SSD.BBOX_REG_WEIGHTS",
                (1.0, 1.0),
                "a list of 4 numbers, each",
            ),
            ("ssd_baseline", "SSD.IMAGE_SIZE", 0, "> 0, got 0"),
            ("ssd_baseline", "SSD.NMS_THRESH_TEST", -1.0, r"in \[0, 1\], got -1.0"),
            ("ssd_baseline", "SSD.TOPK_CANDIDATES_TEST", 0, ">= 1, got 0"),
            ("ssd_baseline", "SSD.SCALES", ("a", 0.9), "the smallest and the largest scale, got"),
            ("ssd_baseline", "SSD.FIRST_SCALE", 0.0, "> 0, got 0.0"),
            ("ssd_baseline", "SSD.SCALES", (0.9, 0.2), r"the smallest and the largest scale, got"),
            ("ssd_baseline", "SSD.IN_FEATURES", ["p3", "p4"], "three levels or more, got"),
            ("dssd_baseline", "SSD.ASPECT_RATIOS", [[2.0], [2.0]], "lists of .* 4 levels, got"),
            ("ssd_baseline", "SSD.ASPECT_RATIOS", [[-2.0]], "lists of positive numbers"),
            ("ssd_baseline", "SSD.ASPECT_RATIOS", [2.0], "lists of positive numbers"),
            ("dssd_baseline", "DSSD.PREDICTION_CHANNELS", 2, ">= 4, got 2"),
            ("dssd_baseline", "DSSD.DECONVOLUTION_CHANNELS", 0, ">= 4, got 0"),
            ("refinedet_baseline", "REFINEDET.CONNECTION_CHANNELS", 0, ">= 1, got 0"),
            ("refinedet_baseline", "REFINEDET.MIN_OBJECTNESS", 1.0, r"in \[0, 1\), got 1.0"),
            ("refinedet_baseline", "REFINEDET.ANCHOR_SCALE", 0.0, "> 0, got 0.0"),
            ("refinedet_baseline", "REFINEDET.ASPECT_RATIOS", (), r"positive numbers, got \(\)"),
        ],
    )
    def test_values(self, name, key, value, message):
        with pytest.raises(ConfigError, match=f"MODEL.{key} must be {message}"):
            ssd_cfg(name, f"MODEL.{key}", value)

    @every_detector
    def test_a_quality_that_the_head_does_not_have(self, name):
        with pytest.raises(ConfigError, match="MODEL.DENSE.QUALITY is 'iou', but nothing reads it"):
            ssd_cfg(name, "MODEL.DENSE.QUALITY", "iou")

    @every_detector
    def test_levels_that_the_backbone_does_not_have(self, name):
        overrides = ("MODEL.SSD.IN_FEATURES", ["p3", "p4", "p15"])
        with pytest.raises(ValueError, match="IN_FEATURES: unknown output of the backbone 'p"):
            build_ssd(name, *overrides)

    @every_detector
    def test_a_wrong_number_of_classes_is_found_before_training(self, name, tiny_digits):
        cfg = ssd_cfg(
            name,
            "DATASETS.REGISTER", tuple(tiny_digits.values()),
            "MODEL.SSD.NUM_CLASSES", 9,
        )  # fmt: skip
        with pytest.raises(ValueError, match="MODEL.SSD.NUM_CLASSES"):
            load_dataset(cfg, "tiny_train")
