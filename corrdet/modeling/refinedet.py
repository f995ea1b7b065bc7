"""RefineDet (Zhang et al. 2018, https://arxiv.org/abs/1711.06897)."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from corrdet.losses import Criterion, MatchedPredictions
from corrdet.matching import refinedet_matching, ssd_matching

from .dense import expect
from .ssd import CorrdetSSD, mined_labels
from .ssd_head import RefineDetHead

# Negatives for each positive in the losses of the first step, as published.
_REFINEMENT_RATIO = 3.0


@META_ARCH_REGISTRY.register()
class CorrdetRefineDet(CorrdetSSD):
    """SSD in two steps: the first refines the anchors, which are the second one's priors.

    The losses of the Criterion are those of the second step; those of the first, ``loss_arm_cls``
    and ``loss_arm_box_reg`` of the anchor refinement module, are the detector's, as published.
    Keys: MODEL.SSD and MODEL.REFINEDET.
    """

    any_image_size = False

    @configurable
    def __init__(self, *, min_objectness: float, **kwargs):
        """
        Args:
            min_objectness: anchors that the first step thinks less likely to hold an object are
                neither trained on as negatives nor detected.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        self.min_objectness = min_objectness
        # As published (Sec. 3), but for the logits: there an anchor has two, of an object and of
        # background, and the softmax of them is the sigmoid of their difference.
        self.refinement_criterion = Criterion(
            "sigmoid_cross_entropy", "smooth_l1", options={"smooth_l1": {"beta": 1.0}}
        )

    @classmethod
    def from_config(cls, cfg) -> dict:
        return super().from_config(cfg) | {"min_objectness": cfg.MODEL.REFINEDET.MIN_OBJECTNESS}

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if cfg.TEST.IMAGE_BOUNDS:
            raise ValueError(
                "TEST.IMAGE_BOUNDS permutes scores, which RefineDet also takes from its first "
                "step: expected False for CorrdetRefineDet"
            )
        node = cfg.MODEL.REFINEDET
        channels, objectness = node.CONNECTION_CHANNELS, node.MIN_OBJECTNESS
        expect(channels >= 1, "REFINEDET.CONNECTION_CHANNELS", ">= 1", channels)
        expect(0 <= objectness < 1, "REFINEDET.MIN_OBJECTNESS", "in [0, 1)", objectness)

    @classmethod
    def check_priors(cls, cfg) -> None:
        node = cfg.MODEL.REFINEDET
        expect(node.ANCHOR_SCALE > 0, "REFINEDET.ANCHOR_SCALE", "> 0", node.ANCHOR_SCALE)
        ratios = node.ASPECT_RATIOS
        valid = len(ratios) > 0 and all(ratio > 0 for ratio in ratios)
        expect(valid, "REFINEDET.ASPECT_RATIOS", "positive numbers", ratios)

    @classmethod
    def build_priors(cls, cfg, strides: list[int]) -> DefaultAnchorGenerator:
        node = cfg.MODEL.REFINEDET
        return DefaultAnchorGenerator(
            sizes=[[node.ANCHOR_SCALE * stride] for stride in strides],
            aspect_ratios=list(node.ASPECT_RATIOS),
            strides=strides,
            offset=0.5,
        )

    @classmethod
    def build_head(cls, cfg, input_shape: list[ShapeSpec], **predictors) -> nn.Module:
        return RefineDetHead(
            input_shape=input_shape,
            connection_channels=cfg.MODEL.REFINEDET.CONNECTION_CHANNELS,
            norm=cfg.MODEL.SSD.NORM,
            **predictors,
        )

    def match_predictions(
        self,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> MatchedPredictions:
        """The samples of the second step; as the base class."""
        logits = self._flattened(predictions[0], self.num_logits)
        deltas = self._flattened(predictions[1], 4)
        anchors = torch.cat(self.refined_anchors(priors, predictions), dim=1)
        objectness = self.objectness(predictions).view(len(gt_instances), -1)
        matches = [
            refinedet_matching(
                of_image,
                objectness_of_image,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                self.num_classes,
                self.iou_threshold,
                self.min_objectness,
            )
            for of_image, objectness_of_image, instances in zip(
                anchors, objectness, gt_instances, strict=True
            )
        ]
        labels, gt_boxes = (torch.cat(values) for values in zip(*matches, strict=True))
        labels = mined_labels(
            labels, logits, len(gt_instances), self.activation, self.negatives_per_positive
        )
        return self.gather(anchors, logits, deltas, labels, gt_boxes, self.activation)

    def auxiliary_losses(
        self,
        matched: MatchedPredictions,
        normalizer: float | Tensor,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """``loss_arm_cls`` and ``loss_arm_box_reg``, of the first step."""
        logits = self._flattened(predictions[2], 1)
        deltas = self._flattened(predictions[3], 4)
        anchors = Boxes.cat(priors).tensor
        matches = [
            ssd_matching(
                anchors,
                instances.gt_boxes.tensor,
                torch.zeros_like(instances.gt_classes),
                num_classes=1,
                iou_threshold=self.iou_threshold,
            )
            for instances in gt_instances
        ]
        labels, gt_boxes = (torch.cat(values) for values in zip(*matches, strict=True))
        labels = mined_labels(labels, logits, len(gt_instances), "sigmoid", _REFINEMENT_RATIO)
        anchors = anchors.expand(len(gt_instances), -1, -1)
        refined = self.gather(anchors, logits, deltas, labels, gt_boxes, "sigmoid")
        normalizer = self.normalizer(len(refined.positives))
        losses = self.refinement_criterion(refined, normalizer)
        return {name.replace("loss_", "loss_arm_"): loss for name, loss in losses.items()}

    @torch.no_grad()
    def refined_anchors(
        self, priors: list[Boxes], predictions: tuple[list[Tensor], ...]
    ) -> list[Tensor]:
        """Per level (N, R, 4), the anchors as the first step has refined them; constants."""
        (levels,) = self._transpose_dense_predictions([predictions[3]], [4])
        return [
            self.box2box_transform.apply_deltas(
                deltas.flatten(0, 1).float(), anchors.tensor.repeat(len(deltas), 1)
            ).view_as(deltas)
            for anchors, deltas in zip(priors, levels, strict=True)
        ]

    def image_priors(
        self, priors: list[Boxes], predictions: tuple[list[Tensor], ...]
    ) -> list[list[Boxes]]:
        """The refined anchors of each image, per level."""
        levels = self.refined_anchors(priors, predictions)
        return [[Boxes(boxes[index]) for boxes in levels] for index in range(len(levels[0]))]

    @torch.no_grad()
    def objectness(self, predictions: tuple[list[Tensor], ...]) -> Tensor:
        """(N x R,) how likely each anchor holds an object, of the first step."""
        return self._flattened(predictions[2], 1)[:, 0].float().sigmoid()

    def scores(self, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
        """As the base class, and 0 where the first step is sure that there is no object."""
        (levels,) = self._transpose_dense_predictions([predictions[2]], [1])
        return [
            of_level * (objectness.float().sigmoid() >= self.min_objectness)
            for of_level, objectness in zip(super().scores(predictions), levels, strict=True)
        ]

    def positive_scores(
        self, matched: MatchedPredictions, predictions: tuple[list[Tensor], ...]
    ) -> Tensor:
        objectness = self.objectness(predictions)[matched.positives]
        return matched.scores * (objectness >= self.min_objectness)
