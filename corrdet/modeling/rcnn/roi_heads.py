"""The box head of Faster and Mask R-CNN with the losses of a Criterion."""

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions, build_criterion
from corrdet.matching import max_iou_matching

from ..core.config_checks import feature_shapes
from ..core.training import criterion_losses, gather


class CriterionOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor, of a softmax over classes and background, with a Criterion."""

    @configurable
    def __init__(self, input_shape, *, criterion: Criterion, **kwargs):
        """
        Args:
            input_shape: of a region's features.
            criterion: the losses, for a softmax head with deltas.
            kwargs: as detectron2's FastRCNNOutputLayers.
        """
        super().__init__(input_shape, **kwargs)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg, input_shape):
        parameters = super().from_config(cfg, input_shape)
        for loss_parameter in ("smooth_l1_beta", "box_reg_loss_type", "loss_weight"):
            del parameters[loss_parameter]
        criterion = build_criterion(cfg, activation="softmax", has_deltas=True)
        return {**parameters, "criterion": criterion}

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]):
        """The Criterion's losses; see :meth:`match_predictions` for the arguments."""
        matched = self.match_predictions(predictions, proposals)
        # The number of regions, not of positives: each positive counts the same in every batch.
        normalizer = max(len(matched.labels), 1)
        share = len(matched.positives) / len(proposals)
        get_event_storage().put_scalar("roi_head/num_fg_samples", share)
        return criterion_losses(self.criterion, matched, normalizer)

    def match_predictions(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> MatchedPredictions:
        """What the losses read of a batch of sampled regions.

        Args:
            predictions: logits (R, K + 1) and deltas (R, 4 K), or (R, 4) class-agnostic.
            proposals: the R regions by image, with ``proposal_boxes``, ``gt_classes`` and, where an
                image has objects, ``gt_boxes``.

        Returns:
            samples are the regions.
        """
        logits, deltas = predictions
        labels = torch.cat([p.gt_classes for p in proposals])
        regions = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # Without objects all regions are background, and their boxes are not looked at.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        image_ids = torch.cat(
            [torch.full_like(p.gt_classes, index) for index, p in enumerate(proposals)]
        )
        return gather(
            logits,
            labels,
            gt_boxes,
            deltas,
            regions[None],
            self.box2box_transform,
            activation="softmax",
            image_ids=image_ids,
        )


@ROI_HEADS_REGISTRY.register()
class CorrdetROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads, whose box head has the losses of a Criterion."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        feature_shapes(cfg, "MODEL.ROI_HEADS.IN_FEATURES", input_shape)
        parameters = super()._init_box_head(cfg, input_shape)
        shape = parameters["box_head"].output_shape
        return {**parameters, "box_predictor": CriterionOutputLayers(cfg, shape)}

    @torch.no_grad()
    def match_proposals(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        gt_instances: list[Instances],
    ) -> MatchedPredictions:
        """What is predicted for all proposals that training would have as positives, unsampled.

        Args:
            features: of the backbone.
            proposals: of each image, with ``proposal_boxes``.
            gt_instances: the ground truth of each image.
        """
        chosen = []
        for regions, instances in zip(proposals, gt_instances, strict=True):
            labels, boxes = max_iou_matching(
                regions.proposal_boxes.tensor,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                self.proposal_matcher,
                self.num_classes,
            )
            positive = (labels >= 0) & (labels < self.num_classes)
            kept = regions[positive]
            kept.gt_classes = labels[positive]
            kept.gt_boxes = Boxes(boxes[positive])
            chosen.append(kept)
        pooled = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [regions.proposal_boxes for regions in chosen],
        )
        predictions = self.box_predictor(self.box_head(pooled))
        return self.box_predictor.match_predictions(predictions, chosen)
