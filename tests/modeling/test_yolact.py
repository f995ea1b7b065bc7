"""YOLACT: what it trains on, detects and refuses; against the same in plain loops."""

import itertools
import json
import math
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from torch.nn import functional as F

from corrdet.data import CorrdetDatasetMapper, load_dataset
from corrdet.data.checks import AnnotationError
from corrdet.engine.configuration import ConfigError, load_config
from corrdet.engine.evaluator import CorrelationEvaluator
from corrdet.engine.trainer import CorrdetTrainer
from corrdet.losses import COUPLINGS, LOCALIZATION_LOSSES, correlation_loss
from corrdet.losses.registry import refusal
from corrdet.modeling.yolact.fast_nms import fast_nms
from corrdet.modeling.yolact.masks import assemble_masks, paste_masks, shrink_masks
from corrdet.ops import elementwise_iou, pairwise_iou
from tests.helpers.detectors import batch_with_masks as batch
from tests.helpers.detectors import (
    hostile_batches,
    is_sound,
    losses_in_training,
    match,
    step,
)
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow


def yolact_cfg(*overrides, name="yolact_baseline"):
    """The quick config on a smaller model, with the overrides."""
    smaller = [
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
        "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.YOLACT.PROTONET_DIM", 16,
        "MODEL.YOLACT.NUM_PROTOTYPES", 8,
    ]  # fmt: skip
    path = str(ROOT / f"configs/quick/{name}.yaml")
    return load_config(Namespace(config_file=path, opts=[*smaller, *overrides]))


SIGMOID = (
    "MODEL.YOLACT.ACTIVATION", "sigmoid",
    "MODEL.YOLACT.NEGATIVES_PER_POSITIVE", 0.0,
    "MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal",
)  # fmt: skip


def build(*overrides, name="yolact_baseline"):
    torch.manual_seed(0)
    return build_model(yolact_cfg(*overrides, name=name))


def mapped(records, mask_format="bitmask"):
    """Records in Detectron2's format, by the mapper of training, without augmentation."""
    mapper = CorrdetDatasetMapper(
        True,
        augmentations=[],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
    )
    return [mapper(record) for record in records]


def square_masks(instances):
    """A mask in each box: its upper left triangle."""
    height, width = instances.image_size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = torch.zeros(len(instances), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.tolist(), strict=True):
        inside = (x + 0.5 >= x1) & (x + 0.5 < x2) & (y + 0.5 >= y1) & (y + 0.5 < y2)
        mask[:] = inside & ((x - x1) / (x2 - x1) + (y - y1) / (y2 - y1) < 1)
    instances.gt_masks = BitMasks(masks)


def with_masks(images):
    for image in images:
        square_masks(image["instances"])
    return images


# ---- The losses, once more in plain code.


def plain_predictions(model, images):
    """Anchors (R, 4); of each image logits, deltas, coefficients, prototypes, semantic logits."""
    with torch.no_grad():
        _, features, (*levels, prototypes, semantic) = model.predict(images)
    flat = []
    for level_outputs, size in zip(levels, (11, 4, prototypes.shape[1]), strict=True):
        # (N, A x size, H, W) -> (N, H x W x A, size)
        parts = [
            level.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for level in level_outputs
        ]
        flat.append(torch.cat(parts, dim=1))
    anchors = torch.cat([boxes.tensor for boxes in model.anchor_generator(features)])
    return anchors, *flat, prototypes, semantic


def plain_matches(anchors, gt_boxes):
    """Of each anchor the place of its ground truth, "background" or "ignored"."""
    ious = pairwise_iou(gt_boxes, anchors)
    matches = []
    for column in ious.T.tolist():
        best = max(column, default=0.0)
        if best > 0.5:
            matches.append(column.index(best))
        else:
            matches.append("ignored" if best >= 0.4 else "background")
    # The largest IoU of all first; an object whose best anchor is taken gets the next best.
    pairs = [
        (-iou, anchor, gt)
        for gt, row in enumerate(ious.tolist())
        for anchor, iou in enumerate(row)
        if iou > 0
    ]
    taken, settled = set(), set()
    for _, anchor, gt in sorted(pairs):
        if anchor not in taken and gt not in settled:
            taken.add(anchor)
            settled.add(gt)
            matches[anchor] = gt
    return matches


def plain_shrunk(mask, stride, height, width):
    """(H, W): the share of each pixel that the mask covers."""
    mask = np.asarray(mask)
    result = np.zeros((height, width), np.float32)
    for row, column in itertools.product(range(height), range(width)):
        block = mask[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        result[row, column] = block.sum() / stride**2
    return result


def plain_near(box, height, width):
    """The authors' crop: pixel i counts from x1 - 1 on, up to x2 + 1."""
    x1, y1, x2, y2 = box
    return torch.tensor(
        [
            [x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1 for column in range(width)]
            for row in range(height)
        ]
    )


def plain_losses(model, images):
    """The losses, and IoUs of boxes and masks of the positives, in their order."""
    anchors, logits, deltas, coefficients, prototypes, semantic = plain_predictions(model, images)
    classification = localization = masks_loss = semantic_loss = 0.0
    num_positives, box_ious, mask_ious, scores = 0, [], [], []
    for index, image in enumerate(images):
        truth = image["instances"]
        matches = plain_matches(anchors, truth.gt_boxes.tensor)
        own = [i for i, match in enumerate(matches) if isinstance(match, int)]
        num_positives += len(own)
        log_probabilities = logits[index].log_softmax(dim=1)
        negatives = [-log_probabilities[i, 10].item() for i, m in enumerate(matches)
                     if m == "background"]  # fmt: skip
        classification += sum(sorted(negatives, reverse=True)[: 3 * len(own)])
        size = prototypes.shape[2:]
        shrunk = [torch.from_numpy(plain_shrunk(m, 4, *size)) for m in truth.gt_masks.tensor]
        for i in own:
            label, box = truth.gt_classes[matches[i]], truth.gt_boxes.tensor[matches[i]][None]
            classification -= log_probabilities[i, label].item()
            scores.append(log_probabilities[i, label].exp().item())
            target = model.box2box_transform.get_deltas(anchors[i][None], box)
            localization += F.smooth_l1_loss(deltas[index, i][None], target, reduction="sum").item()
            logit = sum(
                coefficient * prototype
                for coefficient, prototype in zip(coefficients[index, i], prototypes[index],
                                                  strict=True)
            )  # fmt: skip
            mask = shrunk[matches[i]]
            near = plain_near((box[0] / 4).tolist(), *size)
            cross_entropy = F.binary_cross_entropy(logit.sigmoid(), mask, reduction="none")
            width, height = (box[0, 2:] - box[0, :2]).tolist()
            masks_loss += cross_entropy[near].sum().item() / (width / 4 * height / 4)
            predicted = model.box2box_transform.apply_deltas(
                deltas[index, i][None], anchors[i][None]
            )
            box_ious.append(elementwise_iou(predicted, box).item())
            found = (logit > 0) & plain_near((predicted[0] / 4).tolist(), *size)
            there = mask >= 0.5
            union = (found | there).sum().item()
            mask_ious.append((found & there).sum().item() / union if union else 0.0)
        size = semantic.shape[2:]
        targets = torch.zeros(10, *size)
        for label, mask in zip(truth.gt_classes.tolist(), truth.gt_masks.tensor, strict=True):
            targets[label][torch.from_numpy(plain_shrunk(mask, 8, *size)) >= 0.5] = 1
        cross_entropy = F.binary_cross_entropy_with_logits(semantic[index], targets)
        semantic_loss += 10 * cross_entropy.item() / len(images)
    count = max(num_positives, 1)
    losses = {
        "loss_cls": classification / count,
        "loss_box_reg": 1.5 * localization / count,
        "loss_mask": 6.125 * masks_loss / count,
        "loss_semantic": semantic_loss,
    }
    return losses, *(torch.tensor(values) for values in (scores, box_ious, mask_ious))


class TestLosses:
    @pytest.mark.parametrize("num_objects", [(4, 2), (0, 3), (0, 0)])
    def test_are_those_of_plain_loops(self, num_objects):
        model = build().train()
        images = with_masks(batch(num_objects, seed=1))
        images[0]["instances"].gt_classes[:] = 3  # two objects of a class in one pixel
        expected, scores, box_ious, _ = plain_losses(model, images)
        matched = match(model, images).matched
        losses = step(model, images)
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(losses[name].item(), value, rtol=1e-4, atol=1e-5, msg=name)
        assert len(scores) == len(matched.scores)
        torch.testing.assert_close(matched.scores, scores)
        torch.testing.assert_close(matched.ious, box_ious)

    def test_masks_that_are_left_out_are_stood_for(self):
        """On average over what is chosen, the loss is that of all."""
        model = build().train()
        images = with_masks(batch((6, 5)))
        assert (positives_of(model, images).image_ids.bincount() > 3).all()
        with EventStorage(), torch.no_grad():
            expected = model(images)["loss_mask"].item()
            model.branch.max_masks = 2
            values = [model(images)["loss_mask"].item() for _ in range(40)]
        spread = np.std(values) / math.sqrt(len(values))
        assert 0 < spread < 0.1 * expected
        assert abs(np.mean(values) - expected) < 4 * spread

    def test_an_object_of_many_is_still_matched(self):
        """Two that share their best anchor, and a crowd: every positive is of its own object."""
        model = build()
        boxes = torch.tensor([[30.0, 30, 54, 54], [31.0, 31, 55, 55], [70, 70, 74, 75]])
        priors = torch.cat([b.tensor for b in anchors_of(model, (96, 96))])
        instances = Instances((96, 96))
        instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.tensor([4, 4, 5])
        samples = SimpleNamespace(priors=priors[None])
        labels, matched, places = model.matcher.matcher(samples, [instances])
        positive = (places >= 0) & (places < 3)
        assert places.unique().tolist() == [-1, 0, 1, 2, 3]
        classes = torch.tensor([4, 4, 5, 10, -1])  # of -1, ignored, the last
        assert torch.equal(labels, classes[places])
        assert torch.equal(matched[positive], boxes[places[positive]])
        assert plain_matches(priors, boxes) == [
            {-1: "ignored", 3: "background"}.get(place, place) for place in places.tolist()
        ]

    def test_every_composition_that_is_not_refused(self):
        images = with_masks(batch((3, 2), size=64))
        model, cfg = build(), yolact_cfg().clone()
        cfg.defrost()
        each_coupling = [(name,) for name in COUPLINGS]
        for quality, localization, couplings in [
            *itertools.product(["box"], LOCALIZATION_LOSSES, [(), *each_coupling]),
            *itertools.product(["mask"], LOCALIZATION_LOSSES, [()]),
            *itertools.product(["mask"], ["smooth_l1"], each_coupling),
        ]:
            cfg.MODEL.CRITERION.LOCALIZATION = localization
            cfg.MODEL.CRITERION.COUPLINGS = couplings
            cfg.MODEL.YOLACT.QUALITY = model.branch.quality = quality
            reason = refusal("softmax_cross_entropy", localization, couplings)
            if reason:
                with pytest.raises(ValueError, match=f"^MODEL.CRITERION: {reason}"):
                    model.build_criterion(cfg)
                continue
            model.criterion = model.build_criterion(cfg)
            losses = step(model, images)
            added = {f"loss_{name}" for name in couplings if not
                     COUPLINGS[name].takes_localization}  # fmt: skip
            expected = {"loss_cls", "loss_box_reg", "loss_mask", "loss_semantic"} | added
            assert losses.keys() == expected
            assert is_sound(model, losses), (quality, localization, couplings)
            # DistributedDataParallel stops where a parameter takes no part.
            assert all(p.grad is not None for p in model.parameters())
            for branch in ("cls_score", "bbox_pred", "coefficients", "semantic"):
                gradient = getattr(model.head, branch).weight.grad
                assert gradient.abs().sum() > 0, (branch, quality, localization, couplings)

    def test_of_a_sigmoid_all_scores_start_low(self):
        model = build(*SIGMOID, "MODEL.YOLACT.PRIOR_PROB", 0.2).eval()
        assert model.head.cls_score.out_channels == 6 * 10
        images = with_masks(batch((3, 2)))
        with torch.no_grad():
            scores = torch.cat(model.scores(model.predict(images)[2]), dim=1)
            # With a sigmoid, scores of positives can change places for the bounds of AP.
            model.image_bounds = True
            outputs = model(images)
        assert scores.shape[2] == 10 and scores.mean().item() == pytest.approx(0.2, abs=0.05)
        for output in outputs:
            assert {"instances", "instances_upper", "instances_lower", "positives"} == output.keys()
            assert output["instances_upper"].has("pred_masks")

    def test_half_precision(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            masks = assemble_masks(torch.full((1, 2, 2), 1.01), torch.ones(1, 1))
        assert masks.dtype == torch.float32 and (masks == 1.01).all()
        model = build("MODEL.CRITERION.COUPLINGS", ("correlation",)).train()
        images = with_masks(batch())
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(images)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        assert is_sound(model, losses)
        model.inference.score_threshold = 0.0
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            detections = model.eval()(images)[0]["instances"]
        assert len(detections) > 0 and detections.pred_boxes.tensor.dtype == torch.float32

    def test_the_loss_falls(self, tiny_digits):
        history = losses_in_training(tiny_digits, yolact_cfg, 30)
        for name in history[0]:
            before, after = (sum(h[name] for h in part) for part in (history[:3], history[-3:]))
            assert after < 0.9 * before, (name, before, after)


def anchors_of(model, size):
    height, width = size
    features = [
        torch.zeros(1, 1, -(-height // stride), -(-width // stride))
        for stride in model.anchor_generator.strides
    ]
    return model.anchor_generator(features)


def positives_of(model, images):
    """What the losses are given of a batch, in training."""
    return match(model.train(), images).matched


class TestHardNegatives:
    def test_labels(self):
        model = build("MODEL.YOLACT.NEGATIVES_PER_POSITIVE", 2.0)
        images = with_masks(batch((2, 1)))
        anchors, logits, *_ = plain_predictions(model.train(), images)
        labels = positives_of(model, images).labels.view(2, -1)
        for index, image in enumerate(images):
            truth = image["instances"]
            matches = plain_matches(anchors, truth.gt_boxes.tensor)
            background = -logits[index].log_softmax(dim=1)[:, 10]
            negatives = [i for i, match in enumerate(matches) if match == "background"]
            count = 2 * sum(isinstance(match, int) for match in matches)
            hardest = sorted(negatives, key=lambda i: -background[i].item())[:count]
            assert len(hardest) == count
            expected = [
                truth.gt_classes[match].item()
                if isinstance(match, int)
                else (10 if i in hardest else -1)
                for i, match in enumerate(matches)
            ]
            assert labels[index].tolist() == expected

    def test_an_image_without_objects_has_none(self):
        labels = positives_of(build(), with_masks(batch((0, 2)))).labels.view(2, -1)
        assert (labels[0] == -1).all() and (labels[1] == 10).any()


class TestMaskQuality:
    def test_ious_are_those_of_plain_loops(self):
        model = build(
            "MODEL.YOLACT.QUALITY", "mask",
            "MODEL.CRITERION.COUPLINGS", ("correlation",),
            "MODEL.CRITERION.CORRELATION.WEIGHT", 1.0,
        )  # fmt: skip
        images = with_masks(batch((4, 2), seed=2))
        _, scores, box_ious, mask_ious = plain_losses(model.train(), images)
        assert mask_ious.max() > 0.1 and not torch.allclose(mask_ious, box_ious, atol=0.05)
        torch.testing.assert_close(positives_of(model, images).ious, mask_ious)
        losses = step(model, images)
        expected = correlation_loss(scores, mask_ious)
        torch.testing.assert_close(losses["loss_correlation"], expected)

    def test_localization_losses_still_train_boxes(self):
        images = with_masks(batch())
        box_losses = {}
        for quality in ("box", "mask"):
            model = build(
                "MODEL.YOLACT.QUALITY", quality, "MODEL.CRITERION.LOCALIZATION", "harmonic_iou"
            )
            box_losses[quality] = step(model, images)["loss_box_reg"].item()
            assert model.head.bbox_pred.weight.grad.abs().sum() > 0
        assert box_losses["box"] == box_losses["mask"]

    def test_positives_at_evaluation(self):
        images = with_masks(batch())
        model = build("MODEL.YOLACT.QUALITY", "mask").eval()
        with torch.no_grad():
            outputs = model(images)
            box_outputs = build().eval()(images)
        for output, other in zip(outputs, box_outputs, strict=True):
            torch.testing.assert_close(output["positives"]["scores"], other["positives"]["scores"])
            assert not torch.equal(output["positives"]["ious"], other["positives"]["ious"])

    def test_a_gradient_through_the_ious_is_refused(self):
        overrides = (
            "MODEL.CRITERION.COUPLINGS", ("correlation",),
            "MODEL.CRITERION.CORRELATION.GRADIENT", "both",
        )  # fmt: skip
        yolact_cfg(*overrides)
        with pytest.raises(ConfigError, match="CORRELATION.GRADIENT must be 'scores' .*got 'both'"):
            yolact_cfg(*overrides, "MODEL.YOLACT.QUALITY", "mask")


def plain_detections(model, images):
    """Of each image boxes, scores, classes and (D, H, W) mask probabilities."""
    training = model.training
    anchors, logits, deltas, coefficients, prototypes, _ = plain_predictions(model, images)
    model.train(training)
    results = []
    for index in range(len(images)):
        scores = logits[index].softmax(dim=1)
        found = []
        for anchor, anchor_scores in enumerate(scores[:, :10].tolist()):
            for label, score in enumerate(anchor_scores):
                if score > model.inference.score_threshold:
                    found.append((score, anchor, label))
        found = sorted(found, reverse=True)[: model.inference.topk]
        chosen = torch.tensor([anchor for _, anchor, _ in found])
        values = torch.tensor([score for score, _, _ in found])
        classes = torch.tensor([label for _, _, label in found])
        boxes = model.box2box_transform.apply_deltas(deltas[index, chosen], anchors[chosen])
        if model.inference.nms is not batched_nms:
            keep = plain_fast_nms(boxes, values, classes, model.inference.nms_threshold, 200)
        else:
            keep = batched_nms(boxes, values, classes, model.inference.nms_threshold).tolist()
        keep = keep[: model.inference.max_detections]
        masks = torch.stack(
            [
                (prototypes[index] * coefficients[index, chosen[k], :, None, None]).sum(dim=0)
                for k in keep
            ]
        )
        results.append((boxes[keep], values[keep], classes[keep], masks.sigmoid()))
    return results


def plain_pasted(mask, box, scale, height, width):
    """(height, width) the mask, interpolated between centres of pixels; and where it is at 1/2."""
    result, is_close = np.zeros((2, height, width), bool)
    sides = [scale[1], scale[0]] * 2
    near = plain_near([b / side for b, side in zip(box, sides, strict=True)], *mask.shape)
    mask = mask * near.numpy()
    for row, column in itertools.product(range(height), range(width)):
        y = min(max((row + 0.5) / scale[0] - 0.5, 0), mask.shape[0] - 1)
        x = min(max((column + 0.5) / scale[1] - 0.5, 0), mask.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, mask.shape[0] - 1), min(left + 1, mask.shape[1] - 1)
        down, across = y - top, x - left
        upper = mask[top, left] * (1 - across) + mask[top, right] * across
        lower = mask[bottom, left] * (1 - across) + mask[bottom, right] * across
        value = upper * (1 - down) + lower * down
        result[row, column], is_close[row, column] = value > 0.5, abs(value - 0.5) < 1e-4
    return result, is_close


def plain_fast_nms(boxes, scores, classes, threshold, topk):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    keep = []
    for place, i in enumerate(order):
        better = [j for j in order[:place] if classes[j] == classes[i]]
        overlaps = [elementwise_iou(boxes[i][None], boxes[j][None]).item() for j in better]
        if len(better) < topk and all(iou <= threshold for iou in overlaps):
            keep.append(i)
    return keep


class TestDetections:
    def test_fast_and_exact_nms_differ(self):
        model, images = build("MODEL.YOLACT.SCORE_THRESH_TEST", 0.0).eval(), batch()
        model.inference.nms_threshold = 0.1
        counts = []
        for nms in (model.inference.nms, batched_nms):
            model.inference.nms = nms
            with torch.no_grad():
                counts.append(sum(len(output["instances"]) for output in model(images)))
        assert counts[0] < counts[1]

    @pytest.mark.parametrize("nms", ["fast", "exact"])
    def test_are_those_of_plain_loops(self, nms):
        model = build("MODEL.YOLACT.NMS", nms, "TEST.DETECTIONS_PER_IMAGE", 15).eval()
        model.inference.topk, model.inference.nms_threshold = 300, 0.3
        images = with_masks(batch())
        images[1] |= {"height": 130, "width": 64}  # other than it is shown to the model
        with torch.no_grad():
            outputs = [output["instances"] for output in model(images)]
        model.head.train()  # for its semantic segmentation
        expected = plain_detections(model, images)
        for image, detections, (boxes, scores, classes, masks) in zip(
            images, outputs, expected, strict=True
        ):
            height, width = image["height"], image["width"]
            shown = image["image"].shape[1:]
            assert detections.image_size == (height, width) and not detections.has("masks")
            boxes = Boxes(boxes.clone())
            boxes.scale(width / shown[1], height / shown[0])
            boxes.clip((height, width))
            kept = boxes.nonempty()
            assert len(detections) == kept.sum() > 4
            torch.testing.assert_close(detections.scores, scores[kept])
            torch.testing.assert_close(detections.pred_classes, classes[kept])
            torch.testing.assert_close(detections.pred_boxes.tensor, boxes.tensor[kept])
            assert detections.pred_masks.dtype == torch.bool
            assert detections.pred_masks.shape == (len(detections), height, width)
            scale = 4 * height / shown[0], 4 * width / shown[1]
            for pasted, box, mask in zip(
                detections.pred_masks[:6], detections.pred_boxes.tensor, masks[kept], strict=False
            ):
                expected_mask, is_close = plain_pasted(mask.numpy(), box.tolist(), scale,
                                                       height, width)  # fmt: skip
                assert ((pasted.numpy() == expected_mask) | is_close).all()

    def test_mask_ap_is_evaluated(self, tiny_digits):
        """Detections whose boxes and masks are the ground truth have a box and mask AP of 100."""
        cfg = yolact_cfg(
            "DATASETS.REGISTER", tuple(tiny_digits.values()),
            "DATASETS.TEST", ("tiny_val",),
            "DATALOADER.NUM_WORKERS", 0,
        )  # fmt: skip
        model = build_model(cfg).eval()
        evaluator = CorrelationEvaluator("tiny_val")
        evaluator.reset()
        model.branch.prototype_stride = 1
        for images in CorrdetTrainer.build_test_loader(cfg, "tiny_val"):
            truth = images[0]["instances"]
            result = Instances(truth.image_size)
            result.pred_boxes = truth.gt_boxes.clone()
            result.scores = torch.linspace(0.9, 0.5, len(truth))
            result.pred_classes = truth.gt_classes
            result.masks = truth.gt_masks.tensor.float()
            output = model.branch.postprocess(result, images[0]["height"], images[0]["width"])
            evaluator.process(images, [{"instances": output}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP"] > 99 and results["segm"]["AP"] > 99
        assert results["segm"]["oLRP"] < 5

    def test_names_of_weights(self):
        weights = build().state_dict()
        names = {key.split(".")[1] for key in weights if key.startswith("head.")}
        assert names == {
            "tower", "cls_score", "bbox_pred", "coefficients", "protonet", "semantic"
        }  # fmt: skip
        assert weights["head.cls_score.weight"].shape == (6 * 11, 32, 3, 3)
        assert weights["head.coefficients.weight"].shape == (6 * 8, 32, 3, 3)
        # The shapes of the anchors: two areas, three ratios of height and width.
        (anchors,) = list(build().anchor_generator.cell_anchors)[:1]
        sides = anchors[:, 2:] - anchors[:, :2]
        areas = torch.tensor([24.0**2, 34.0**2]).repeat_interleave(3)
        torch.testing.assert_close(sides.prod(dim=1), areas)
        ratios = torch.tensor([1.0, 0.5, 2.0]).repeat(2)
        torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios)

    def test_the_head(self):
        model = build("MODEL.YOLACT.NORM", "")
        assert not any(isinstance(m, torch.nn.GroupNorm) for m in model.head.modules())
        head = build().train().head
        features = [torch.randn(2, 32, side, side) * 9 for side in (8, 4)]
        logits, deltas, coefficients, prototypes, semantic = head(features)
        assert [level.shape for level in logits] == [(2, 66, 8, 8), (2, 66, 4, 4)]
        assert [level.shape for level in deltas] == [(2, 24, 8, 8), (2, 24, 4, 4)]
        assert [level.shape for level in coefficients] == [(2, 48, 8, 8), (2, 48, 4, 4)]
        assert coefficients[0].min() < 0 and coefficients[0].abs().max() <= 1
        assert prototypes.shape == (2, 8, 16, 16) and prototypes.min() == 0
        assert semantic.shape == (2, 10, 8, 8)
        assert head.eval()(features).semantic is None

    def test_without_ground_truth_there_are_no_positives(self):
        images = batch()
        del images[1]["instances"]
        with torch.no_grad():
            outputs = build().eval()(images)
        assert all(output.keys() == {"instances"} for output in outputs)

    def test_nothing_is_found(self):
        model = build("MODEL.YOLACT.SCORE_THRESH_TEST", 1.0).eval()
        with torch.no_grad():
            output = model([{"image": torch.zeros(3, 150, 140)}])[0]["instances"]
        assert len(output) == 0 and output.pred_masks.shape == (0, 150, 140)


class TestFastNMS:
    @pytest.mark.parametrize("topk", [1, 5, 200])
    @pytest.mark.parametrize("seed", range(3))
    def test_is_the_plain_loop(self, seed, topk):
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(60, 2, generator=generator) * 30
        sides = torch.rand(60, 2, generator=generator) * 20 + 5
        boxes = torch.cat([corners, corners + sides], dim=1)
        # Few values, for ties.
        scores = torch.randint(1, 8, (60,), generator=generator) / 8
        classes = torch.randint(0, 3, (60,), generator=generator)
        keep = fast_nms(boxes, scores, classes, 0.4, topk)
        assert keep.tolist() == plain_fast_nms(boxes, scores, classes, 0.4, topk)

    def test_what_is_removed_still_removes(self):
        # Each overlaps the next by 1/2, and the one after it not at all.
        boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
        scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
        assert fast_nms(boxes, scores, classes, 0.5).tolist() == [0]
        assert batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 2]
        classes[1] = 1
        assert fast_nms(boxes, scores, classes, 0.5).tolist() == [0, 1, 2]
        # As exact NMS, it keeps what overlaps by just the threshold.
        halves = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
        assert fast_nms(halves, scores[:2], torch.zeros_like(classes[:2]), 0.5).tolist() == [0, 1]

    def test_empty_and_bad_arguments(self):
        nothing = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        assert fast_nms(torch.zeros(0, 4), *nothing, 0.5).tolist() == []
        with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
            fast_nms(torch.zeros(0, 4), *nothing, 0.5, topk=0)


def record_with(tmp_path, *segmentations, boxes=None, crowd=(), size=(48, 64)):
    from PIL import Image

    height, width = size
    path = tmp_path / "picture.png"
    Image.new("RGB", (width, height), (90, 120, 30)).save(path)
    boxes = boxes or [[10, 10, 30, 30]] * len(segmentations)
    return {
        "file_name": str(path),
        "height": height,
        "width": width,
        "image_id": 1,
        "annotations": [
            {
                "bbox": list(map(float, box)),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 3,
                "iscrowd": int(index in crowd),
                "segmentation": segmentation,
            }
            for index, (segmentation, box) in enumerate(zip(segmentations, boxes, strict=True))
        ],
    }


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


POLYGON = [[10.0, 10, 30, 10, 30, 30, 10, 30]]


class TestBadInput:
    @pytest.mark.parametrize("quality", ["box", "mask"])
    @pytest.mark.parametrize("classification", ["softmax_cross_entropy", "rank_sort", "ape"])
    def test_hostile_batches(self, quality, classification):
        model = build(
            *(() if classification == "softmax_cross_entropy" else SIGMOID),
            "MODEL.YOLACT.QUALITY", quality,
            "MODEL.CRITERION.COUPLINGS", ("correlation",),
            "MODEL.CRITERION.CLASSIFICATION", classification,
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for case, images in hostile_batches().items():
            images = with_masks(images)
            losses = step(model, images, logged := {})
            assert is_sound(model, losses), (case, losses)
            assert all(p.grad is not None for p in model.parameters()), case
            num_positives = logged["num_pos_anchors"]
            assert (num_positives == 0) == (case == "no objects"), case
            optimizer.step()
            with torch.no_grad():
                outputs = model.eval()(images)
            assert all(output.keys() == {"instances", "positives"} for output in outputs)
            assert outputs[0]["positives"]["ious"].isfinite().all()

    @pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
    def test_images_and_batches_without_ground_truth(self, tmp_path, mask_format):
        empty, other = (record_with(tmp_path, *polygons) for polygons in ((), (POLYGON,)))
        for records in ([empty, empty], [empty, other]):
            losses = step(model := build(), mapped(records, mask_format))
            assert is_sound(model, losses)
            assert (losses["loss_mask"] == 0) == (records[1] is empty)
            assert losses["loss_semantic"] > 0

    def test_polygons_and_run_lengths_are_the_same_mask(self, tmp_path):
        mask = np.zeros((48, 64), bool)
        mask[10:30, 10:30] = True
        format_losses = {}
        for name, mask_format, segmentation in (
            ("polygon", "polygon", POLYGON),
            ("polygon to mask", "bitmask", POLYGON),
            ("run lengths", "bitmask", rle(mask)),
        ):
            images = mapped([record_with(tmp_path, segmentation)] * 2, mask_format)
            expected = PolygonMasks if mask_format == "polygon" else BitMasks
            assert isinstance(images[0]["instances"].gt_masks, expected)
            losses = step(build(), images)
            format_losses[name] = {key: loss.item() for key, loss in losses.items()}
        assert (
            format_losses["polygon"]
            == format_losses["polygon to mask"]
            == format_losses["run lengths"]
        )

    def test_crowd_regions_are_no_objects(self, tmp_path):
        crowd_mask = rle(np.ones((48, 64), bool))
        record = record_with(
            tmp_path, POLYGON, crowd_mask, boxes=[[10, 10, 30, 30], [0, 0, 64, 48]], crowd=(1,)
        )
        alone = record_with(tmp_path, POLYGON)
        losses, expected = (step(build(), mapped([r] * 2)) for r in (record, alone))
        assert losses == expected
        only_crowd = record_with(tmp_path, crowd_mask, crowd=(0,))
        model = build()
        assert is_sound(model, step(model, mapped([only_crowd] * 2), logged := {}))
        assert logged["num_pos_anchors"] == 0

    def test_masks_that_vanish_or_lie_elsewhere(self):
        """Smaller than a pixel of the prototypes, empty, outside of their box or image."""
        images = batch((4, 1))
        for image in images:
            square_masks(image["instances"])
        masks = images[0]["instances"].gt_masks.tensor
        masks[0] = False
        masks[1] = False
        masks[1, 50, 50] = True
        masks[2] = ~masks[2]
        height, width = images[1]["instances"].image_size
        outside = [[np.array([width + 5.0, 5, width + 30, 5, width + 30, height])]]
        images[1]["instances"].gt_masks = PolygonMasks(outside)
        for quality in ("box", "mask"):
            model = build("MODEL.YOLACT.QUALITY", quality)
            assert is_sound(model, step(model, images))

    def test_bad_masks_are_found_before_training(self, tmp_path):
        """Image and annotation are named; or it is left out."""
        register = f"masks={tmp_path}/masks.json:{tmp_path}"
        good, elsewhere = POLYGON, [[70.0, 10, 90, 10, 90, 30]]
        record = record_with(tmp_path, good, elsewhere)
        content = {
            "images": [{"id": 1, "file_name": "picture.png", "width": 64, "height": 48}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {
                    "id": 5 + index,
                    "image_id": 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [10, 10, 20, 20],
                    "area": 400,
                    "segmentation": annotation["segmentation"],
                }
                for index, annotation in enumerate(record["annotations"])
            ],
        }
        (tmp_path / "masks.json").write_text(json.dumps(content))
        data = (
            "MODEL.YOLACT.NUM_CLASSES",
            1,
            "DATASETS.REGISTER",
            (register,),
            "DATASETS.TRAIN",
            ("masks",),
        )
        with pytest.raises(AnnotationError, match="picture.png: annotation 1.*mask lies outside"):
            load_dataset(yolact_cfg(*data), "masks")
        cfg = yolact_cfg(*data, "DATASETS.SKIP_BAD_ANNOTATIONS", True)
        (kept,) = load_dataset(cfg, "masks")
        (mask,) = (a["segmentation"] for a in kept["annotations"])
        assert [polygon.tolist() for polygon in mask] == good

    def test_polygons_end_at_the_border_of_the_image(self):
        """The rest of the batch's tensor is padding."""
        polygon = [[np.array([10.0, 10, 60, 10, 60, 60, 10, 60])]]
        shrunk = shrink_masks(PolygonMasks(polygon), (40, 48), 8, 8, 8)
        expected = torch.zeros(1, 8, 8)
        expected[0, 1:5, 1:6] = 1
        expected[0, 1] *= 6 / 8  # of the second row and column, 8 to 16, the first 2 are not in it
        expected[0, :, 1] *= 6 / 8
        assert torch.equal(shrunk, expected)

    def test_masks_are_cut_a_pixel_of_the_prototypes_around_their_boxes(self):
        """In units of the prototypes the boxes are 0.9 to 1.1 and 2 to 3.5 wide, 2 to 3 high."""
        boxes = torch.tensor([[3.6, 8.0, 4.4, 12.0], [8.0, 8.0, 14.0, 12.0]])
        pasted = paste_masks(torch.ones(2, 6, 6), boxes, (4, 4), 24, 24)
        # -0.1 <= 0, 1, 2 < 2.1; 1 <= 1, 2, 3, 4 < 4.5; and rows 1 <= 1, 2, 3 < 4.
        expected = torch.zeros(2, 24, 24, dtype=torch.bool)
        expected[0, 4:16, 0:12] = True
        expected[1, 4:16, 4:20] = True
        # Interpolated along both sides the corners are 0.625 ** 2, below 1/2.
        expected[0, 4:16:11, 11] = False
        expected[1, 4:16:11, 4:20:15] = False
        assert torch.equal(pasted, expected)
        assert paste_masks(torch.ones(1, 6, 6), boxes[:1], (0.5, 0.5), 3, 3).shape == (1, 3, 3)

    def test_targets_are_shares_or_binary(self):
        shares = torch.tensor([0.0, 0.4, 0.5, 1.0])
        assert torch.equal(build().branch.targets(shares), shares)
        binary = build("MODEL.YOLACT.MASK_TARGETS", "binary").branch.targets(shares)
        assert binary.tolist() == [0, 0, 1, 1]

    def test_objects_without_masks_are_refused(self):
        images = with_masks(batch())
        images[1]["instances"].remove("gt_masks")
        with pytest.raises(ValueError, match="needs the mask of every object.*gt_boxes"):
            step(build(), images)


class TestRefusals:
    @pytest.mark.parametrize(
        "overrides, message",
        [
            (("MODEL.MASK_ON", False), "MODEL.MASK_ON must be True for CorrdetYOLACT.*got False"),
            (
                ("TEST.IMAGE_BOUNDS", True),
                "TEST.IMAGE_BOUNDS .* which with MODEL.YOLACT.ACTIVATION 'softmax' cannot",
            ),
            (("MODEL.YOLACT.QUALITY", "masks"), "YOLACT.QUALITY: .*'masks'; did you mean 'mask'"),
            (("MODEL.YOLACT.NORM", "BN"), "MODEL.YOLACT.NORM: unknown name 'BN'"),
            (("MODEL.YOLACT.NMS", "fats"), "MODEL.YOLACT.NMS: .*'fats'; did you mean 'fast'"),
            (("MODEL.YOLACT.NUM_PROTOTYPES", 0), "YOLACT.NUM_PROTOTYPES must be >= 1, got 0"),
            (("MODEL.YOLACT.MAX_MASKS", 0), "MODEL.YOLACT.MAX_MASKS must be >= 1, got 0"),
            (("MODEL.YOLACT.FAST_NMS_TOPK", 0), "YOLACT.FAST_NMS_TOPK must be >= 1, got 0"),
            (
                ("MODEL.YOLACT.MASK_WEIGHT", -1.0),
                "MASK_WEIGHT must be >= 0, got -1.0",
            ),
            (
                ("MODEL.YOLACT.IOU_THRESHOLDS", (0.5, 0.4)),
                r"IOU_THRESHOLDS must be two ascending numbers in \(0, 1\], got \(0.5, 0.4\)",
            ),
            (
                ("MODEL.CRITERION.CLASSIFICATION", "sigmoid_focal"),
                "works on sigmoid heads, but CorrdetYOLACT has a softmax head: set "
                "MODEL.YOLACT.ACTIVATION to 'sigmoid'",
            ),
        ],
    )
    def test_configs(self, overrides, message):
        with pytest.raises(ConfigError, match=message):
            yolact_cfg(*overrides)

    def test_a_wrong_number_of_classes_is_found_before_training(self, tiny_digits):
        cfg = yolact_cfg(
            "DATASETS.REGISTER", tuple(tiny_digits.values()), "MODEL.YOLACT.NUM_CLASSES", 9
        )
        with pytest.raises(ValueError, match="MODEL.YOLACT.NUM_CLASSES"):
            load_dataset(cfg, "tiny_train")
