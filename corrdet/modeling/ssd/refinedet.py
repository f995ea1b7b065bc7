"""RefineDet (Zhang et al. 2018, https://arxiv.org/abs/1711.06897)."""

from functools import partial
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Instances
from torch import Tensor, nn

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion
from corrdet.matching import refinedet_matching, ssd_matching
from corrdet.options import POSITIVE, SHARE_BELOW_1, Key, Range, at_least, default_of, numbers

from ..core.training import gather
from ..dense.detector import Assignment, Batch, Branch, MatchImages, Samples, per_prior, per_sample
from .heads import RefineDetHead, RefinedPredictions
from .mining import MinedMatcher
from .ssd import SSDFamily

# Negatives for each positive in the losses of the first step, as published.
_REFINEMENT_RATIO = 3.0

declare(
    "MODEL.REFINEDET",
    "RefineDet (Zhang et al. 2018, Sec. 3), beside MODEL.SSD",
    CONNECTION_CHANNELS=Key(256, at_least(1), "channels of the transfer connection blocks"),
    ANCHOR_SCALE=Key(4.0, POSITIVE, "side of the anchors in strides"),
    ASPECT_RATIOS=Key(
        (0.5, 1.0, 2.0),
        Range("positive numbers", lambda v: numbers().holds(v) and len(v) > 0),
        "aspect ratios of the anchors",
    ),
    MIN_OBJECTNESS=Key(
        default_of(refinedet_matching, "min_objectness"),
        SHARE_BELOW_1,
        "below this objectness of the first step an anchor is left out (1 minus the paper's theta)",
    ),
)


@META_ARCH_REGISTRY.register()
class CorrdetRefineDet(SSDFamily):
    """SSD in two steps: the first refines the anchors, which are the second one's priors.

    The losses of the Criterion are those of the second step; those of the first, ``loss_arm_cls``
    and ``loss_arm_box_reg`` of the anchor refinement module, are the detector's, as published.
    """

    sections = ("MODEL.SSD", "MODEL.REFINEDET")
    any_image_size = False
    has_image_bounds = False

    @classmethod
    def check_values(cls, cfg) -> None:
        if cfg.TEST.IMAGE_BOUNDS:
            raise ConfigError(
                "TEST.IMAGE_BOUNDS permutes scores, which RefineDet also takes from its first "
                f"step: expected False for {cls.__name__}"
            )
        super().check_values(cfg)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        ssd, node = cfg.MODEL.SSD, cfg.MODEL.REFINEDET

        def build_priors(strides: list[int]) -> DefaultAnchorGenerator:
            return DefaultAnchorGenerator(
                sizes=[[node.ANCHOR_SCALE * stride] for stride in strides],
                aspect_ratios=list(node.ASPECT_RATIOS),
                strides=strides,
                offset=0.5,
            )

        build_head = partial(
            RefineDetHead, connection_channels=node.CONNECTION_CHANNELS, norm=ssd.NORM
        )
        parts = cls.parts(cfg, build_priors, build_head)
        branch = AnchorRefinement(
            parts["box2box_transform"], parts["normalizer"], ssd.IOU_THRESHOLD, node.MIN_OBJECTNESS
        )
        matcher = RefinedMatcher(branch, ssd.NUM_CLASSES, ssd.IOU_THRESHOLD)
        return parts | {
            "branch": branch,
            "matcher": MinedMatcher(matcher, ssd.ACTIVATION, ssd.NEGATIVES_PER_POSITIVE),
        }


class AnchorRefinement(Branch):
    """The first step: tells objects from background and refines the anchors.

    Attributes:
        min_objectness: anchors that it thinks less likely to hold an object are neither trained on
            as negatives nor detected.
    """

    def __init__(
        self, box_coding, normalizer: nn.Module, iou_threshold: float, min_objectness: float
    ):
        """
        Args:
            box_coding: with the interface of Detectron2's transforms.
            normalizer: as the detector's.
            iou_threshold: anchors that overlap a ground truth more than this are its positives.
            min_objectness: see the class.
        """
        super().__init__()
        self.box_coding = box_coding
        self.normalizer = normalizer
        self.min_objectness = min_objectness
        # As published (Sec. 3), but for the logits: there an anchor has two, of an object and of
        # background, and the softmax of them is the sigmoid of their difference.
        self.criterion = Criterion(
            "sigmoid_cross_entropy", "smooth_l1", options={"smooth_l1": {"beta": 1.0}}
        )
        matching = partial(_objects_matching, iou_threshold=iou_threshold)
        self.matcher = MinedMatcher(
            MatchImages(matching, num_classes=1, by_level=False), "sigmoid", _REFINEMENT_RATIO
        )

    @torch.no_grad()
    def priors(self, anchors: list[Tensor], predictions: RefinedPredictions) -> list[Tensor]:
        """Per level (N, R, 4), the refined anchors; constants for the second step."""
        levels = [per_prior(level, 4) for level in predictions.refinements]
        return [
            self.box_coding.apply_deltas(
                deltas.flatten(0, 1).float(), level_anchors.repeat(deltas.shape[0], 1)
            ).view_as(deltas)
            for level_anchors, deltas in zip(anchors, levels, strict=True)
        ]

    @torch.no_grad()
    def objectness(self, predictions: RefinedPredictions) -> Tensor:
        """(N x R,) how likely each anchor holds an object."""
        return per_sample(predictions.objectness, 1)[:, 0].float().sigmoid()

    def losses(self, batch: Batch, normalizer: float | Tensor) -> dict[str, Tensor]:
        """``loss_arm_cls`` and ``loss_arm_box_reg``."""
        predictions, anchors = batch.samples.predictions, batch.samples.anchors
        samples = batch.samples._replace(
            priors=anchors.expand(len(batch.gt_instances), -1, -1),
            logits=per_sample(predictions.objectness, 1),
            deltas=per_sample(predictions.refinements, 4),
        )
        labels, gt_boxes, _ = self.matcher(samples, batch.gt_instances)
        matched = gather(
            samples.logits, labels, gt_boxes, samples.deltas, samples.priors, self.box_coding
        )
        normalizer = self.normalizer(len(matched.positives), labels.device)
        losses = self.criterion(matched, normalizer)
        return {name.replace("loss_", "loss_arm_"): loss for name, loss in losses.items()}

    def scores(self, scores: list[Tensor], predictions: RefinedPredictions) -> list[Tensor]:
        """0 where it is sure that there is no object."""
        levels = [per_prior(level, 1).float().sigmoid() for level in predictions.objectness]
        return [
            level_scores * (objectness >= self.min_objectness)
            for level_scores, objectness in zip(scores, levels, strict=True)
        ]

    def positive_scores(self, batch: Batch) -> Tensor:
        objectness = self.objectness(batch.samples.predictions)[batch.matched.positives]
        return batch.matched.scores * (objectness >= self.min_objectness)


class RefinedMatcher:
    """Labels refined anchors, without the negatives that the first step is sure of."""

    def __init__(self, refinement: AnchorRefinement, num_classes: int, iou_threshold: float):
        """
        Args:
            refinement: the first step.
            num_classes: C.
            iou_threshold: as of :class:`AnchorRefinement`.
        """
        self.refinement = refinement
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold

    @torch.no_grad()
    def __call__(self, samples: Samples, gt_instances: list[Instances]) -> Assignment:
        objectness = self.refinement.objectness(samples.predictions)
        matches = [
            refinedet_matching(
                priors,
                image_objectness,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                self.num_classes,
                self.iou_threshold,
                self.refinement.min_objectness,
            )
            for priors, image_objectness, instances in zip(
                samples.priors, objectness.view(len(gt_instances), -1), gt_instances, strict=True
            )
        ]
        return Assignment(*(torch.cat(values) for values in zip(*matches, strict=True)))


def _objects_matching(
    anchors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """SSD's matching, with all objects of one class."""
    return ssd_matching(
        anchors, gt_boxes, torch.zeros_like(gt_classes), num_classes, iou_threshold=iou_threshold
    )
