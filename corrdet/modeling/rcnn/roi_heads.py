"""The heads of Faster, Mask and Cascade R-CNN with the losses of a Criterion."""

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from corrdet.activation import class_scores
from corrdet.config_keys import declare
from corrdet.losses import MatchedPredictions
from corrdet.matching import max_iou_matching
from corrdet.options import BOOL, Key

from ..core.config_checks import feature_shapes
from .mask_loss import MaskLoss
from .output_layers import CriterionOutputLayers

declare(
    "MODEL.ROI_HEADS",
    "of CorrdetRCNN, beside Detectron2's keys",
    SAMPLE=Key(
        True,
        BOOL,
        "whether box and mask heads are trained on BATCH_SIZE_PER_IMAGE proposals of an image, "
        "chosen at random; False: on all, as ranking losses want it, and sums are divided by the "
        "number of positives",
    ),
)

# The largest coordinate that a stage is given, in pixels: see CorrdetCascadeROIHeads.
_FAR = 1e5


class CriterionROIHeads(StandardROIHeads):
    """What the heads below have in common: the choice of proposals, and the loss of masks."""

    @configurable
    def __init__(self, *, samples: bool = True, mask_loss: MaskLoss | None = None, **kwargs):
        """
        Args:
            samples: whether heads are trained on proposals that are chosen at random.
            mask_loss: None for Detectron2's.
            kwargs: as of Detectron2's heads.
        """
        super().__init__(**kwargs)
        self.samples = samples
        self.mask_loss = mask_loss

    @classmethod
    def from_config(cls, cfg, input_shape):
        feature_shapes(cfg, "MODEL.ROI_HEADS.IN_FEATURES", input_shape)
        parameters = super().from_config(cfg, input_shape)
        mask_loss = MaskLoss.from_config(cfg, parameters.get("mask_head"))
        return {**parameters, "samples": cfg.MODEL.ROI_HEADS.SAMPLE, "mask_loss": mask_loss}

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As detectron2's, or all that are not ignored, in their order."""
        if self.samples:
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        labels = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes):
            labels = torch.where(matched_labels == 1, gt_classes[matched_idxs], labels)
            labels[matched_labels == -1] = -1
        kept = torch.nonzero(labels >= 0)[:, 0]
        return kept, labels[kept]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """As detectron2's, with the mask loss of ``MODEL.ROI_MASK_HEAD`` in training."""
        if not self.training or self.mask_loss is None:
            return super().forward(images, features, proposals, targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        # Of the stage whose proposals masks are trained on.
        classification = next(loss for name, loss in losses.items() if "loss_cls" in name)
        pooled = [features[name] for name in self.mask_in_features]
        losses["loss_mask"] = self.mask_loss(
            self.mask_head, self.mask_pooler, pooled, proposals, self.num_classes, classification
        )
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def match_regions(
        self, proposals: list[Instances], gt_instances: list[Instances], matcher: Matcher
    ) -> tuple[Tensor, list[Instances]]:
        """Those proposals that training would have as positives, unsampled.

        Returns:
            which of all the images' they are, bool; and they, of each image, with their
            ``gt_boxes`` and ``gt_classes``.
        """
        which, chosen = [], []
        for regions, instances in zip(proposals, gt_instances, strict=True):
            labels, boxes = max_iou_matching(
                regions.proposal_boxes.tensor,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                matcher,
                self.num_classes,
            )
            positive = (labels >= 0) & (labels < self.num_classes)
            kept = regions[positive]
            kept.gt_classes = labels[positive]
            kept.gt_boxes = Boxes(boxes[positive])
            which.append(positive)
            chosen.append(kept)
        return torch.cat(which), chosen


@ROI_HEADS_REGISTRY.register()
class CorrdetROIHeads(CriterionROIHeads):
    """Detectron2's StandardROIHeads, whose box head has the losses of a Criterion."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        parameters = super()._init_box_head(cfg, input_shape)
        shape = parameters["box_head"].output_shape
        return {**parameters, "box_predictor": CriterionOutputLayers(cfg, shape)}

    def _forward_box(self, features, proposals, targets=None):
        return super()._forward_box(features, proposals)

    @torch.no_grad()
    def match_proposals(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        gt_instances: list[Instances],
    ) -> tuple[MatchedPredictions, Tensor]:
        """What is predicted for all proposals that training would have as positives, unsampled.

        Args:
            features: of the backbone.
            proposals: of each image, with ``proposal_boxes``.
            gt_instances: the ground truth of each image.

        Returns:
            the positives, and (P,) the scores that detections have.
        """
        _, chosen = self.match_regions(proposals, gt_instances, self.proposal_matcher)
        pooled = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [regions.proposal_boxes for regions in chosen],
        )
        predictions = self.box_predictor(self.box_head(pooled))
        matched = self.box_predictor.match_predictions(predictions, chosen)
        return matched, matched.scores


@ROI_HEADS_REGISTRY.register()
class CorrdetCascadeROIHeads(CriterionROIHeads, CascadeROIHeads):
    """Detectron2's CascadeROIHeads (Cai & Vasconcelos 2018), with a Criterion at each stage.

    Losses have their stage in the name, as Detectron2's: ``loss_cls_stage0``. What is logged of
    scores and IoUs is of the last stage, whose boxes are detected.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        parameters = super()._init_box_head(cfg, input_shape)
        heads = zip(parameters["box_heads"], parameters["box_predictors"], strict=True)
        parameters["box_predictors"] = [
            CriterionOutputLayers(
                cfg, head.output_shape, box2box_transform=theirs.box2box_transform
            )
            for head, theirs in heads
        ]
        return parameters

    def _forward_box(self, features, proposals, targets=None):
        """As detectron2's: losses in training, detections else."""
        if not self.training:
            return super()._forward_box(features, proposals)
        losses, last = {}, self.num_cascade_stages - 1
        for stage, (predictions, regions) in enumerate(
            self.run_stages(features, proposals, targets)
        ):
            stage_losses = self.box_predictor[stage].losses(
                predictions, regions, is_logged=stage == last
            )
            losses |= {f"{name}_stage{stage}": loss for name, loss in stage_losses.items()}
        return losses

    def run_stages(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> list[tuple[tuple[Tensor, Tensor], list[Instances]]]:
        """What each stage predicts, and for which regions.

        Args:
            features: of the backbone.
            proposals: of each image; in training labelled.
            targets: the ground truth of each image, in training.
        """
        inputs = [features[name] for name in self.box_in_features]
        image_sizes = [regions.image_size for regions in proposals]
        stages, boxes = [], []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(inputs, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append((predictions, proposals))
        return stages

    def _create_proposals_from_boxes(self, boxes, image_sizes):
        # Coordinates that are not finite are kept in their stage's losses, which tell.
        finite = [b.detach().nan_to_num(nan=0.0, posinf=_FAR, neginf=-_FAR) for b in boxes]
        return super()._create_proposals_from_boxes(finite, image_sizes)

    @torch.no_grad()
    def match_proposals(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        gt_instances: list[Instances],
    ) -> tuple[MatchedPredictions, Tensor]:
        """As :meth:`CorrdetROIHeads.match_proposals`, of the last stage's regions.

        The scores of detections are means over the stages.
        """
        stages = self.run_stages(features, proposals)
        (logits, deltas), regions = stages[-1]
        which, chosen = self.match_regions(regions, gt_instances, self.proposal_matchers[-1])
        last = self.box_predictor[-1]
        matched = last.match_predictions((logits[which], deltas[which]), chosen)
        scores = [class_scores(stage[0][which], last.activation) for stage, _ in stages]
        scores = torch.stack(scores).mean(dim=0)
        return matched, scores.gather(1, matched.classes[:, None])[:, 0]
