"""What one-stage detectors have in common: how a Criterion trains them, and one prior a location.

A detector is a composition of priors, box coding, a head and a matching; see the modules beside
this one. :class:`CriterionTraining` is also RetinaNet's, :class:`CorrdetDenseDetector` is the base
of those that use :class:`DenseHead`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from corrdet.losses import Criterion, MatchedPredictions, build_criterion
from corrdet.names import unknown_name

from .backbone import feature_shapes
from .dense_head import DenseHead, centerness
from .positives import (
    add_positives,
    check_image_bounds,
    criterion_losses,
    mean_over_processes,
)
from .priors import square_priors


class CriterionTraining:
    """Training by a Criterion, to be inherited from before one of Detectron2's dense detectors.

    That has ``num_classes``, ``anchor_generator`` and ``box2box_transform``, and a head that
    returns logits (N, A x C, H, W), or A x (C + 1) for a softmax, and deltas (N, A x 4, H, W) for
    each level.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: the matched priors' scores and IoUs before post-processing, for beta_img. With
    ``image_bounds`` they get ``instances_upper`` and ``instances_lower`` too: what comes out of
    post-processing when an image's positives have their scores in the order of their IoUs, or
    against it, for the bounds of AP at image level.

    Attributes:
        activation: "sigmoid", or "softmax" of a head whose last logit is the background's.
        has_masks: whether detections have masks, which neither multi-scale testing nor export know.
        any_image_size: whether it can be exported for images of any size: not where levels are cut
            to fit each other.
        image_bounds: output ``instances_upper`` and ``instances_lower`` at evaluation.
        has_deltas: whether the deltas can be regressed as such, not only as decoded boxes.
        criterion: the losses.
    """

    activation = "sigmoid"
    has_masks = False
    any_image_size = True
    has_deltas = True
    image_bounds = False
    criterion: Criterion

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        """The losses of a config; needs no model, so that they can be checked before one is built.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`.
        """
        return build_criterion(cfg, activation=cls.activation, has_deltas=cls.has_deltas)

    @property
    def num_logits(self) -> int:
        """Of each sample: C, and one more with a softmax."""
        return self.num_classes + (self.activation == "softmax")

    def forward(self, batched_inputs: list[dict]):
        """As detectron2's DenseDetector.forward; see the class for what else is in the output."""
        if self.training:
            return super().forward(batched_inputs)
        images, features, predictions = self.predict(batched_inputs)
        outputs = [{} for _ in batched_inputs]
        to_process = {"instances": predictions}
        if all("instances" in image for image in batched_inputs):
            gt_instances = [image["instances"].to(self.device) for image in batched_inputs]
            priors = self.anchor_generator(features)
            matched = self.match_predictions(priors, predictions, gt_instances)
            add_positives(outputs, matched, self.positive_scores(matched, predictions))
            if self.image_bounds:
                for bound in ("upper", "lower"):
                    logits = _bound_logits(matched, predictions[0], upper=bound == "upper")
                    to_process[f"instances_{bound}"] = logits, *predictions[1:]
        for name, to_infer in to_process.items():
            results = self.forward_inference(images, features, to_infer)
            for output, result, image, size in zip(
                outputs, results, batched_inputs, images.image_sizes, strict=False
            ):
                output[name] = self.postprocess(
                    result, image.get("height", size[0]), image.get("width", size[1])
                )
        return outputs

    def postprocess(self, result: Instances, height: int, width: int) -> Instances:
        """The detections of an image in the size that is asked for."""
        return detector_postprocess(result, height, width)

    def forward_training(self, images, features, predictions, gt_instances):
        priors = self.anchor_generator(features)
        matched = self.match_predictions(priors, predictions, gt_instances)
        num_positives = len(matched.positives)
        get_event_storage().put_scalar("num_pos_anchors", num_positives / len(gt_instances))
        normalizer = self.normalizer(num_positives)
        losses = criterion_losses(self.criterion, matched, normalizer)
        others = self.auxiliary_losses(matched, normalizer, priors, predictions, gt_instances)
        return losses | others

    def match_predictions(
        self,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> MatchedPredictions:
        """Label all priors of a batch and gather what the losses read.

        Args:
            priors: per level.
            predictions: the head's.
            gt_instances: the ground truth of the N images.

        Returns:
            samples are the R priors of each of the N images, image by image.
        """
        logits = self._flattened(predictions[0], self.num_logits)
        deltas = self._flattened(predictions[1], 4)
        labels, gt_boxes = self.label_predictions(priors, logits, deltas, gt_instances)
        priors = Boxes.cat(priors).tensor.expand(len(gt_instances), -1, -1)
        return self.gather(priors, logits, deltas, labels, gt_boxes, self.activation)

    def gather(
        self,
        priors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        labels: Tensor,
        gt_boxes: Tensor,
        activation: str,
    ) -> MatchedPredictions:
        """What the losses read of labelled samples, image by image.

        Args:
            priors: (N, R, 4), of each image.
            logits: (N x R, C), or (N x R, C + 1) for a softmax.
            deltas: (N x R, 4).
            labels: (N x R,), gt_boxes: (N x R, 4); as of :meth:`label_predictions`.
            activation: "sigmoid" or "softmax".
        """
        num_classes = logits.shape[1] - (activation == "softmax")
        positives = torch.nonzero((labels >= 0) & (labels != num_classes))[:, 0]
        image_ids = positives // priors.shape[1]
        gt_boxes, deltas = gt_boxes[positives], deltas[positives].float()
        positive_priors = priors[image_ids, positives % priors.shape[1]]
        boxes = self.box2box_transform.apply_deltas(deltas, positive_priors)
        gt_deltas = None
        if self.has_deltas:
            gt_deltas = self.box2box_transform.get_deltas(positive_priors, gt_boxes)
        return MatchedPredictions(
            logits=logits,
            labels=labels,
            positives=positives,
            boxes=boxes,
            gt_boxes=gt_boxes,
            image_ids=image_ids,
            deltas=deltas if self.has_deltas else None,
            gt_deltas=gt_deltas,
            activation=activation,
        )

    def _flattened(self, levels: list[Tensor], size: int) -> Tensor:
        """(N x R, size) of what a head gives for each level, (N, A x size, H, W)."""
        (levels,) = self._transpose_dense_predictions([levels], [size])
        return torch.cat(levels, dim=1).flatten(0, 1)

    @torch.no_grad()
    def label_predictions(
        self, priors: list[Boxes], logits: Tensor, deltas: Tensor, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Label the samples; here from the priors alone.

        Args:
            priors: per level.
            logits: (N x R, C), or (N x R, C + 1) for a softmax.
            deltas: (N x R, 4).
            gt_instances: the ground truth of the N images.

        Returns:
            labels (N x R,): 0..C-1, C for background, -1 for ignored; and boxes (N x R, 4): the
            matched ground-truth box, undefined where the label is not a class.
        """
        labels, boxes = self.label_anchors(priors, gt_instances)
        return torch.cat(labels), torch.cat(boxes)

    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the priors of each image, (R,) and (R, 4); as detectron2's RetinaNet does."""
        raise NotImplementedError

    def normalizer(self, num_positives: int) -> float | Tensor:
        """What sums over the samples of a training batch are divided by."""
        raise NotImplementedError

    def auxiliary_losses(
        self,
        matched: MatchedPredictions,
        normalizer: float | Tensor,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of branches that the Criterion does not know, by name; scalars."""
        return {}

    def positive_scores(
        self, matched: MatchedPredictions, predictions: tuple[list[Tensor], ...]
    ) -> Tensor:
        """(P,) the scores that the positives would be ranked by at inference."""
        return matched.scores

    # ---- Inference.

    def predict(
        self, batched_inputs: list[dict]
    ) -> tuple[ImageList, list[Tensor], tuple[list[Tensor], ...]]:
        """The images as a batch, their features of each level, and what the head makes of them."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        return images, features, self.head(features)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """Detections of each image, in the size that it has in the batch."""
        return [
            self.select(candidates) for candidates in self.candidates(images, features, predictions)
        ]

    def candidates(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """What enters NMS: of each image and level the best scores above the threshold, decoded."""
        scores = self.scores(predictions)
        (deltas,) = self._transpose_dense_predictions([predictions[1]], [4])
        priors = self.image_priors(self.anchor_generator(features), predictions)
        return [
            self._decode_multi_level_predictions(
                priors[index],
                [of_level[index] for of_level in scores],
                [of_level[index].float() for of_level in deltas],
                self.test_score_thresh,
                self.test_topk_candidates,
                image_size,
            )
            for index, image_size in enumerate(images.image_sizes)
        ]

    def image_priors(
        self, priors: list[Boxes], predictions: tuple[list[Tensor], ...]
    ) -> list[list[Boxes]]:
        """What the deltas of each image change, per level; here the same priors for all images."""
        return [priors] * len(predictions[0][0])

    def scores(self, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
        """What detections are ranked by: per level (N, R, C) in [0, 1], float32."""
        (logits,) = self._transpose_dense_predictions([predictions[0]], [self.num_logits])
        return [of_level.float().sigmoid() for of_level in logits]

    def select(self, candidates: Instances) -> Instances:
        """The detections of an image: NMS within each class, and the best of what is left."""
        boxes, scores = candidates.pred_boxes.tensor, candidates.scores
        classes = candidates.pred_classes
        keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        keep = keep[: self.max_detections_per_image]
        detections = candidates[keep]
        refined = self.refine(boxes[keep], classes[keep], boxes, scores, classes)
        detections.pred_boxes = Boxes(refined)
        return detections

    def refine(
        self,
        boxes: Tensor,
        classes: Tensor,
        candidates: Tensor,
        candidate_scores: Tensor,
        candidate_classes: Tensor,
    ) -> Tensor:
        """Move the boxes that NMS has kept; here they stay. As :func:`score_voting`."""
        return boxes


def _bound_logits(
    matched: MatchedPredictions, level_logits: list[Tensor], *, upper: bool
) -> list[Tensor]:
    """Logits that give an image's positives their scores in the order of their IoUs, or against it.

    Only the logits of positives for their own class change, and only places ("Correlation Loss",
    section 3.2.1).

    Args:
        matched: of :meth:`CriterionTraining.match_predictions`.
        level_logits: the head's, per level (N, A x K, H, W).
        upper: the largest score to the largest IoU, else to the smallest.

    Returns:
        new logits, shaped as the head's.
    """
    logits, num_images = matched.logits.clone(), len(level_logits[0])
    rows, columns = matched.positives, matched.labels[matched.positives]
    for image_id in range(num_images):
        of_image = torch.nonzero(matched.image_ids == image_id)[:, 0]
        values = logits[rows[of_image], columns[of_image]].sort().values
        by_iou = of_image[matched.ious[of_image].argsort(descending=not upper, stable=True)]
        logits[rows[by_iou], columns[by_iou]] = values

    sizes = [level[0].numel() // logits.shape[1] for level in level_logits]
    levels = logits.view(num_images, -1, logits.shape[1]).split(sizes, dim=1)
    bound = []
    for values, level in zip(levels, level_logits, strict=True):
        height, width = level.shape[-2:]
        values = values.reshape(num_images, height, width, -1)  # (N, H, W, A x K)
        bound.append(values.permute(0, 3, 1, 2))
    return bound


# What the third branch of the head can be trained to tell.
QUALITIES = ("centerness", "iou")


class CorrdetDenseDetector(CriterionTraining, DenseDetector):
    """A detector with :class:`DenseHead`: one square prior for each location.

    Subclasses say which box coding and which matching. With a ``from_config`` of their own they may
    have other heads and priors, as SSD has.
    """

    # Of QUALITIES, those that the positives of this detector have.
    qualities: tuple[str, ...] = QUALITIES
    num_classes_key = "MODEL.DENSE.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform,
        num_classes: int,
        criterion: Criterion,
        quality: str = "",
        quality_weight: float = 1.0,
        image_bounds: bool = False,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone, head, head_in_features, pixel_mean, pixel_std: as detectron2's DenseDetector.
            anchor_generator: of one prior per location.
            box2box_transform: the box coding, with the interface of Detectron2's transforms.
            num_classes: C.
            criterion: the losses.
            quality: what the head's third branch tells, of QUALITIES; "" where it has none.
            quality_weight: of that branch's loss.
            image_bounds: output ``instances_upper`` and ``instances_lower`` at evaluation.
            test_score_thresh: detections have a higher score than this.
            test_topk_candidates: of each level, so many at most enter NMS.
            test_nms_thresh: NMS removes boxes with a higher IoU than this.
            max_detections_per_image: after NMS.
            input_format: of the images' channels.
        """
        super().__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.criterion = criterion
        self.quality = quality
        self.quality_weight = quality_weight
        self.image_bounds = image_bounds
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg) -> dict:
        check_image_bounds(cfg)
        if cfg.TEST.IMAGE_BOUNDS and cfg.MODEL.DENSE.QUALITY:
            raise ValueError(
                "TEST.IMAGE_BOUNDS permutes scores, which with MODEL.DENSE.QUALITY "
                f"{cfg.MODEL.DENSE.QUALITY!r} are products of two: expected one of them unset"
            )
        criterion = cls.build_criterion(cfg)
        backbone = build_backbone(cfg)
        node = cfg.MODEL.DENSE
        shapes = feature_shapes(backbone.output_shape(), node.IN_FEATURES, "DENSE.IN_FEATURES")
        side, transform, has_scales = cls.box_coding(cfg)
        head = DenseHead(
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
            has_quality=bool(node.QUALITY),
            has_scales=has_scales,
        )
        strides = [shape.stride for shape in shapes]
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": square_priors(strides, [side * stride for stride in strides]),
            "box2box_transform": transform,
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "quality": node.QUALITY,
            "quality_weight": node.QUALITY_WEIGHT,
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        """The losses of a config, after the detector's own keys have been checked.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`, or as :meth:`check_config`.
        """
        cls.check_config(cfg)
        return super().build_criterion(cfg)

    @classmethod
    def check_config(cls, cfg) -> None:
        """
        Raises:
            ValueError: a value that the detector cannot work with; the message starts with its key.
        """
        node = cfg.MODEL.DENSE
        if node.QUALITY and node.QUALITY not in QUALITIES:
            raise ValueError(
                "MODEL.DENSE.QUALITY: " + unknown_name("quality", node.QUALITY, QUALITIES)
            )
        if node.QUALITY and node.QUALITY not in cls.qualities:
            raise ValueError(
                f"MODEL.DENSE.QUALITY: {cls.__name__} has no {node.QUALITY}, as its positives may "
                f"lie outside of their ground truth; it can have {' or '.join(cls.qualities)}"
            )
        check_norm(node.NORM, "DENSE.NORM")
        check_inference(node, "DENSE")
        expect(node.QUALITY_WEIGHT >= 0, "DENSE.QUALITY_WEIGHT", ">= 0", node.QUALITY_WEIGHT)
        expect(node.NUM_CONVS >= 1, "DENSE.NUM_CONVS", ">= 1", node.NUM_CONVS)

    @classmethod
    def box_coding(cls, cfg) -> tuple[float, object, bool]:
        """
        Returns:
            the side of the priors in strides; the box coding, with the interface of Detectron2's
            transforms; whether the head has a learned factor of the deltas for each level.
        """
        raise NotImplementedError

    @property
    def strides(self) -> list[int]:
        """Of each level, in pixels."""
        return list(self.anchor_generator.strides)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        counts = [len(of_level) for of_level in anchors]
        priors = Boxes.cat(anchors).tensor
        matches = [
            self.match(priors, instances.gt_boxes.tensor, instances.gt_classes, counts)
            for instances in gt_instances
        ]
        return [labels for labels, _ in matches], [boxes for _, boxes in matches]

    def match(
        self, priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Label the priors of one image.

        Args:
            priors: (R, 4).
            gt_boxes: (M, 4).
            gt_classes: (M,).
            counts: priors of each level.

        Returns:
            labels (R,) and boxes (R, 4), as those of :mod:`corrdet.matching`.
        """
        raise NotImplementedError

    def normalizer(self, num_positives: int) -> Tensor:
        """The positives of a batch, on average over all processes, at least 1.

        So have all of the papers; Detectron2's FCOS takes a running mean of its own process.
        """
        return mean_over_processes(num_positives, self.device).clamp(min=1)

    def auxiliary_losses(
        self, matched, normalizer, priors, predictions, gt_instances
    ) -> dict[str, Tensor]:
        """``loss_quality``: cross entropy of the head's third branch, over the positives."""
        if not self.quality:
            return {}
        logits = self._flattened(predictions[2], 1)[matched.positives, 0].float()
        if self.quality == "iou":
            targets = matched.ious.detach()
        else:
            priors = Boxes.cat(priors).tensor
            targets = centerness(priors[matched.positives % len(priors)], matched.gt_boxes)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return {"loss_quality": loss / normalizer * self.quality_weight}

    def positive_scores(self, matched, predictions) -> Tensor:
        if not self.quality:
            return matched.scores
        logits = self._flattened(predictions[2], 1)[matched.positives, 0].float()
        return (matched.scores * logits.sigmoid()).sqrt()

    def scores(self, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
        """With a third branch, the geometric mean of its and the class's probability.

        So has PAA (Kim & Lee 2020, Eq. 11), and FCOS's authors since Tian et al. 2020.
        """
        scores = super().scores(predictions)
        if not self.quality:
            return scores
        (qualities,) = self._transpose_dense_predictions([predictions[2]], [1])
        return [
            (of_level * quality.float().sigmoid()).sqrt()
            for of_level, quality in zip(scores, qualities, strict=True)
        ]


# What Detectron2's get_norm knows.
NORMS = ("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "FrozenBN", "GN", "LN")


def check_norm(norm: str, key: str) -> None:
    """
    Raises:
        ValueError: Detectron2 has no such norm.
    """
    expect(norm in NORMS, key, f"one of {', '.join(map(repr, NORMS))}", norm)


def check_inference(node, key: str) -> None:
    """
    Raises:
        ValueError: a key of ``MODEL.key`` with which nothing would be detected, or all of it.
    """
    threshold, topk = node.NMS_THRESH_TEST, node.TOPK_CANDIDATES_TEST
    expect(0 <= threshold <= 1, f"{key}.NMS_THRESH_TEST", "in [0, 1]", threshold)
    expect(topk >= 1, f"{key}.TOPK_CANDIDATES_TEST", ">= 1", topk)


def expect(condition: bool, key: str, expected: str, value: object) -> None:
    """
    Raises:
        ValueError: the condition does not hold; names the key below MODEL.
    """
    if not condition:
        raise ValueError(f"MODEL.{key} must be {expected}, got {value!r}")
