"""Faster R-CNN and Mask R-CNN (Ren et al. 2015, He et al. 2017) with the losses of a Criterion.

Detectron2's architecture, weights and inference; the losses of the box head come from
``MODEL.CRITERION``. Those of the masks stay Detectron2's, and so do those of the region proposals,
unless ``MODEL.PROPOSAL_GENERATOR.NAME`` is CorrdetRPN.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions, build_criterion
from corrdet.matching import max_iou_matching
from corrdet.names import unknown_name

from .backbone import feature_shapes
from .positives import add_positives, criterion_losses, refuse_image_bounds
from .replaced_keys import check_replaced_keys
from .rpn import CorrdetRPN

# As of CorrdetRetinaNet: Detectron2's key, its default, ours for the same, our default.
_REPLACED_KEYS = (
    ("SMOOTH_L1_BETA", 0.0, "SMOOTH_L1.BETA", 0.0),
    ("BBOX_REG_LOSS_TYPE", "smooth_l1", "LOCALIZATION", "smooth_l1"),
    ("BBOX_REG_LOSS_WEIGHT", 1.0, "LOCALIZATION_WEIGHT", 1.0),
)


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
        return {**parameters, "criterion": CorrdetRCNN.build_criterion(cfg)}

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
        positives = torch.nonzero((labels >= 0) & (labels < self.num_classes))[:, 0]
        deltas, regions, gt_boxes = deltas[positives], regions[positives], gt_boxes[positives]
        if deltas.shape[1] > 4:
            of_classes = deltas.view(len(deltas), self.num_classes, 4)
            deltas = of_classes[torch.arange(len(deltas)), labels[positives]]
        deltas = deltas.float()
        return MatchedPredictions(
            logits=logits,
            labels=labels,
            positives=positives,
            boxes=self.box2box_transform.apply_deltas(deltas, regions),
            gt_boxes=gt_boxes,
            image_ids=image_ids[positives],
            deltas=deltas,
            gt_deltas=self.box2box_transform.get_deltas(regions, gt_boxes),
            activation="softmax",
        )


@ROI_HEADS_REGISTRY.register()
class CorrdetROIHeads(StandardROIHeads):
    """Detectron2's StandardROIHeads, whose box head has the losses of a Criterion."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        feature_shapes(input_shape, cfg.MODEL.ROI_HEADS.IN_FEATURES, "ROI_HEADS.IN_FEATURES")
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
        for of_image, instances in zip(proposals, gt_instances, strict=True):
            labels, boxes = max_iou_matching(
                of_image.proposal_boxes.tensor,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                self.proposal_matcher,
                self.num_classes,
            )
            positive = (labels >= 0) & (labels < self.num_classes)
            kept = of_image[positive]
            kept.gt_classes = labels[positive]
            kept.gt_boxes = type(of_image.proposal_boxes)(boxes[positive])
            chosen.append(kept)
        pooled = self.box_pooler(
            [features[name] for name in self.box_in_features],
            [of_image.proposal_boxes for of_image in chosen],
        )
        predictions = self.box_predictor(self.box_head(pooled))
        return self.box_predictor.match_predictions(predictions, chosen)


@META_ARCH_REGISTRY.register()
class CorrdetRCNN(GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, for the losses of a Criterion in its CorrdetROIHeads.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: scores and IoUs of the matched proposals before post-processing, for beta_img.
    """

    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"

    @classmethod
    def from_config(cls, cfg):
        cls.build_criterion(cfg)  # for its checks; the box predictor builds its own
        return super().from_config(cfg)

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        """The losses of a config; needs no model, so that they can be checked before one is built.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`; one of Detectron2's own loss keys
                asks for another loss than ours; or heads or proposals that this is not for.
        """
        if cfg.MODEL.ROI_HEADS.NAME != "CorrdetROIHeads":
            raise ValueError(
                "MODEL.ROI_HEADS.NAME must be 'CorrdetROIHeads' for CorrdetRCNN, got "
                f"{cfg.MODEL.ROI_HEADS.NAME!r}; GeneralizedRCNN is Detectron2's own"
            )
        refuse_image_bounds(cfg, cls.__name__)
        generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        known = [*(name for name, _ in PROPOSAL_GENERATOR_REGISTRY), "PrecomputedProposals"]
        if generator not in known:
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR.NAME: " + unknown_name("name", generator, known)
            )
        criterion = build_criterion(cfg, activation="softmax", has_deltas=True)
        if generator == "CorrdetRPN":
            CorrdetRPN.build_criterion(cfg)  # for its checks
        check_replaced_keys(
            cfg, "MODEL.ROI_BOX_HEAD", "MODEL.CRITERION", _REPLACED_KEYS, cls.__name__
        )
        return criterion

    @property
    def criterion(self) -> Criterion:
        return self.roi_heads.box_predictor.criterion

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As detectron2's GeneralizedRCNN.inference; see the class for ``positives``."""
        has_truth = all("instances" in image for image in batched_inputs)
        if not has_truth or detected_instances is not None or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.proposal_generator is not None:
            proposals, _ = self.proposal_generator(images, features, None)
        else:
            proposals = [image["proposals"].to(self.device) for image in batched_inputs]
        results, _ = self.roi_heads(images, features, proposals, None)
        outputs = self._postprocess(results, batched_inputs, images.image_sizes)
        gt_instances = [image["instances"].to(self.device) for image in batched_inputs]
        matched = self.roi_heads.match_proposals(features, proposals, gt_instances)
        add_positives(outputs, matched)
        return outputs
