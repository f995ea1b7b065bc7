"""One-stage detectors: a head that predicts classes and boxes of priors, in one straight path.

A step of training is :meth:`DenseDetector.forward`: predict, match, losses. What makes a detector
is handed to the constructor: head, priors, box coding, matcher, normalizer, inference, and a
:class:`Branch` for what it predicts beside classes and boxes. The modules beside this one put
these together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from corrdet.activation import class_scores, num_logits
from corrdet.losses import Criterion, MatchedPredictions

from ..core.bounds import bound_logits
from ..core.detector import Detector
from ..core.training import (
    add_positives,
    batch_images,
    criterion_losses,
    gather,
    ground_truth,
)
from .inference import Candidates, Inference


class DensePredictions(NamedTuple):
    """What a head predicts, per level; N images, A priors of a location, C classes.

    Attributes:
        logits: (N, A x C, H, W), or A x (C + 1) for a softmax.
        deltas: (N, A x 4, H, W).
        quality: (N, A, H, W) logits of a third branch, or None.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    quality: list[Tensor] | None = None


class DenseHead(RetinaNetHead):
    """RetinaNet's head, with GroupNorm of any channels and what its successors added.

    Towers, classifier, box regression and their initial weights are RetinaNet's, whose names of
    weights this has too.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        conv_dims: Sequence[int],
        num_anchors: int = 1,
        norm: str = "GN",
        prior_prob: float = 0.01,
        has_quality: bool = False,
        has_scales: bool = False,
    ):
        """
        Args:
            input_shape: of each level.
            num_classes: C.
            conv_dims: channels of each convolution of the towers.
            num_anchors: A, priors of a location.
            norm: of the towers; as Detectron2's ``get_norm``, but "GN" makes fewer groups than 32
                where the channels ask for it.
            prior_prob: what all scores are about before training.
            has_quality: a third output, one logit per location from the box tower: of centerness
                for FCOS and ATSS, of the IoU for PAA.
            has_scales: a learned factor of the box regression for each level, 1 at first (FCOS,
                ATSS, PAA).
        """
        super().__init__(
            input_shape=list(input_shape),
            num_classes=num_classes,
            num_anchors=num_anchors,
            conv_dims=list(conv_dims),
            # Detectron2's head tries the norm with one channel, which its own "GN" refuses.
            norm=group_norm if norm == "GN" else norm,
            prior_prob=prior_prob,
        )
        self.quality = None
        if has_quality:
            self.quality = nn.Conv2d(conv_dims[-1], num_anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.zeros_(self.quality.bias)
        self.scales = nn.Parameter(torch.ones(len(input_shape))) if has_scales else None

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """``features``: per level, (N, channels, H, W), as many as ``input_shape`` had."""
        assert len(features) == self._num_features
        logits, deltas, qualities = [], [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            level_deltas = self.bbox_pred(box_feature)
            if self.scales is not None:
                level_deltas = level_deltas * self.scales[level]
            deltas.append(level_deltas)
            if self.quality is not None:
                qualities.append(self.quality(box_feature))
        return DensePredictions(logits, deltas, qualities if self.quality is not None else None)


def group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups, or of as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def per_prior(level: Tensor, size: int) -> Tensor:
    """What a head gives for a level, (N, A x size, H, W), as (N, H x W x A, size)."""
    num_images, _, height, width = level.shape
    level = level.view(num_images, -1, size, height, width).permute(0, 3, 4, 1, 2)
    return level.reshape(num_images, -1, size)


def per_sample(levels: list[Tensor], size: int) -> Tensor:
    """The same of all levels, image by image: (N x R, size)."""
    return torch.cat([per_prior(level, size) for level in levels], dim=1).flatten(0, 1)


class Samples(NamedTuple):
    """The R priors of each of N images with what is predicted of them, image by image.

    Attributes:
        anchors: (R, 4), level by level, of every image.
        priors: (N, R, 4) what deltas change: the anchors, unless the detector's branch moves them.
        priors_per_level: how many of the R each level has.
        logits: (N x R, C), or (N x R, C + 1) for a softmax.
        deltas: (N x R, 4).
        predictions: all of the head's.
    """

    anchors: Tensor
    priors: Tensor
    priors_per_level: list[int]
    logits: Tensor
    deltas: Tensor
    predictions: Any


class Assignment(NamedTuple):
    """What samples are trained towards.

    Attributes:
        labels: (N x R,) 0..C-1, C for background, -1 for ignored.
        gt_boxes: (N x R, 4) the matched ground truth, undefined where the label is not a class.
        ground_truths: (N x R,) which one of its image it is, undefined likewise; None where the
            detector's branch does not ask.
    """

    labels: Tensor
    gt_boxes: Tensor
    ground_truths: Tensor | None = None


class Batch(NamedTuple):
    """A batch that has been matched."""

    samples: Samples
    assignment: Assignment
    matched: MatchedPredictions
    gt_instances: list[Instances]


class MatchImages:
    """A matcher that labels each image by itself, from its priors, by a function of matching."""

    def __init__(self, function: Callable, num_classes: int, *, by_level: bool = True):
        """
        Args:
            function: of :mod:`corrdet.matching`, with its options bound by ``partial``; called with
                priors, gt_boxes, gt_classes, and by keywords ``num_classes`` and
                ``priors_per_level``.
            num_classes: C.
            by_level: whether it takes ``priors_per_level``.
        """
        self.function = function
        self.num_classes = num_classes
        self.by_level = by_level

    @torch.no_grad()
    def __call__(self, samples: Samples, gt_instances: list[Instances]) -> Assignment:
        options: dict[str, Any] = {"num_classes": self.num_classes}
        if self.by_level:
            options["priors_per_level"] = samples.priors_per_level
        matches = [
            self.function(priors, instances.gt_boxes.tensor, instances.gt_classes, **options)
            for priors, instances in zip(samples.priors, gt_instances, strict=True)
        ]
        return Assignment(*(torch.cat(values) for values in zip(*matches, strict=True)))


class Branch(nn.Module):
    """What a detector predicts and trains beside classes and boxes; this one: nothing."""

    def priors(self, anchors: list[Tensor], predictions) -> list[Tensor]:
        """What the deltas change: per level (1, R, 4), the same for all images, or (N, R, 4)."""
        return [level_anchors[None] for level_anchors in anchors]

    def ious(self, batch: Batch) -> Tensor | None:
        """(P,) how well positives are localized, where their boxes do not say it."""
        return None

    def losses(self, batch: Batch, normalizer: float | Tensor) -> dict[str, Tensor]:
        """Losses by name, scalars; of a training batch."""
        return {}

    def scores(self, scores: list[Tensor], predictions) -> list[Tensor]:
        """What detections are ranked by, from the class scores, per level (N, R, C)."""
        return scores

    def positive_scores(self, batch: Batch) -> Tensor:
        """(P,) the scores that the positives would be ranked by at inference."""
        return batch.matched.scores

    def complete(self, result: Instances, priors: Tensor, predictions, image_id: int) -> None:
        """Add fields to the detections of an image, of which ``priors`` says where they are."""

    def postprocess(self, result: Instances, height: int, width: int) -> Instances:
        """The detections of an image in the size that is asked for."""
        return detector_postprocess(result, height, width)


class DenseDetector(Detector, nn.Module):
    """A one-stage detector that is trained by a Criterion.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: the matched priors' scores and IoUs before post-processing, for beta_img. With
    ``image_bounds`` they get ``instances_upper`` and ``instances_lower`` too: what comes out of
    post-processing when an image's positives have their scores in the order of their IoUs, or
    against it, for the bounds of AP at image level.

    A registered detector is a subclass with a ``from_config`` that returns these arguments.

    Attributes:
        any_image_size: whether one exported program can be for images of any size: not where
            levels are cut to fit each other.
    """

    any_image_size = True
    has_levels = True
    has_image_bounds = True
    supports_test_time_augmentation = True
    exportable = True

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform,
        matcher: Callable[[Samples, list[Instances]], Assignment],
        num_classes: int,
        criterion: Criterion,
        normalizer: nn.Module,
        inference: Inference,
        branch: Branch | None = None,
        activation: str = "sigmoid",
        image_bounds: bool = False,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone: from (N, channels, H, W) to features by name.
            head: from a list of features to :class:`DensePredictions`, or another NamedTuple that
                begins with its ``logits`` and ``deltas``.
            head_in_features: names of the features, from the largest.
            anchor_generator: from a list of features to Detectron2's Boxes of each.
            box2box_transform: the box coding, with the interface of Detectron2's transforms.
            matcher: what labels the samples, such as :class:`MatchImages`.
            num_classes: C.
            criterion: the losses.
            normalizer: from the number of positives and the device to what sums are divided by.
            inference: from scores and boxes to detections.
            branch: what is predicted beside classes and boxes.
            activation: of the class scores, "sigmoid" or "softmax".
            image_bounds: output ``instances_upper`` and ``instances_lower`` at evaluation.
            pixel_mean, pixel_std: of each channel.
            input_format: of the images' channels.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.head_in_features = list(head_in_features)
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.matcher = matcher
        self.num_classes = num_classes
        self.criterion = criterion
        self.normalizer = normalizer
        self.inference = inference
        self.branch = Branch() if branch is None else branch
        self.activation = activation
        self.num_logits = num_logits(activation, num_classes)
        self.image_bounds = image_bounds
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """The arguments of the constructor."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: of each image ``image``, (channels, H, W), in training ``instances``
                with ``gt_boxes`` and ``gt_classes``, and the ``height`` and ``width`` to detect in.

        Returns:
            in training the losses by name; else, of each image, ``instances``, and see the class.

        Raises:
            ValueError: training without ground truth.
        """
        images, features, predictions = self.predict(batched_inputs)
        gt_instances = ground_truth(batched_inputs, self.device, is_needed=self.training)
        anchors = self.anchor_generator(features)
        if not self.training:
            return self.detect(batched_inputs, images, anchors, predictions, gt_instances)
        batch = self.match(anchors, predictions, gt_instances)
        num_positives = len(batch.matched.positives)
        get_event_storage().put_scalar("num_pos_anchors", num_positives / len(gt_instances))
        normalizer = self.normalizer(num_positives, self.device)
        losses = criterion_losses(self.criterion, batch.matched, normalizer)
        return losses | self.branch.losses(batch, normalizer)

    def predict(self, batched_inputs: list[dict]) -> tuple[ImageList, list[Tensor], Any]:
        """The images as a batch, their features of each level, and what the head makes of them."""
        images = batch_images(
            batched_inputs, self.pixel_mean, self.pixel_std, self.backbone.size_divisibility
        )
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        return images, features, self.head(features)

    def match(self, anchors: list[Boxes], predictions, gt_instances: list[Instances]) -> Batch:
        """Label all priors of a batch and gather what the losses read.

        Args:
            anchors: per level.
            predictions: the head's.
            gt_instances: the ground truth of the N images.
        """
        samples = self.samples(anchors, predictions)
        assignment = self.matcher(samples, gt_instances)
        matched = gather(
            samples.logits,
            assignment.labels,
            assignment.gt_boxes,
            samples.deltas,
            samples.priors,
            self.box2box_transform,
            activation=self.activation,
            regresses_deltas=self.regresses_deltas,
            priors_per_level=samples.priors_per_level,
        )
        batch = Batch(samples, assignment, matched, gt_instances)
        matched.mask_ious = self.branch.ious(batch)
        return batch

    def samples(self, anchors: list[Boxes], predictions) -> Samples:
        """The priors of a batch with what is predicted of them."""
        levels = [boxes.tensor for boxes in anchors]
        priors = self.branch.priors(levels, predictions)
        num_images = len(predictions.logits[0])
        return Samples(
            torch.cat(levels),
            torch.cat(priors, dim=1).expand(num_images, -1, -1),
            [len(level) for level in levels],
            per_sample(predictions.logits, self.num_logits),
            per_sample(predictions.deltas, 4),
            predictions,
        )

    # ---- Inference.

    def detect(
        self,
        batched_inputs: list[dict],
        images: ImageList,
        anchors: list[Boxes],
        predictions,
        gt_instances: list[Instances] | None,
    ) -> list[dict]:
        """The output for each image; see the class."""
        outputs: list[dict] = [{} for _ in batched_inputs]
        to_process = {"instances": predictions}
        if gt_instances is not None:
            batch = self.match(anchors, predictions, gt_instances)
            add_positives(outputs, batch.matched, self.branch.positive_scores(batch))
            if self.image_bounds:
                for bound in ("upper", "lower"):
                    logits = bound_logits(batch.matched, predictions.logits, upper=bound == "upper")
                    to_process[f"instances_{bound}"] = predictions._replace(logits=logits)
        for name, its_predictions in to_process.items():
            for image_id, candidates in enumerate(self.candidates(anchors, its_predictions)):
                size, image = images.image_sizes[image_id], batched_inputs[image_id]
                kept = self.inference.select(candidates)
                result = kept.as_instances(size)
                self.branch.complete(result, kept.priors, its_predictions, image_id)
                outputs[image_id][name] = self.branch.postprocess(
                    result, image.get("height", size[0]), image.get("width", size[1])
                )
        return outputs

    def candidates(self, anchors: list[Boxes], predictions) -> list[Candidates]:
        """What enters NMS, of each image."""
        scores = self.scores(predictions)
        deltas = [per_prior(level, 4).float() for level in predictions.deltas]
        priors = self.branch.priors([boxes.tensor for boxes in anchors], predictions)
        num_images = scores[0].shape[0]
        priors = [level.expand(num_images, -1, -1) for level in priors]
        return [
            self.inference.candidates(
                [level[image_id] for level in priors],
                [level[image_id] for level in scores],
                [level[image_id] for level in deltas],
                self.box2box_transform,
            )
            for image_id in range(num_images)
        ]

    def scores(self, predictions) -> list[Tensor]:
        """What detections are ranked by: per level (N, R, C) in [0, 1], float32."""
        logits = [per_prior(level, self.num_logits).float() for level in predictions.logits]
        scores = [class_scores(level, self.activation) for level in logits]
        return self.branch.scores(scores, predictions)
