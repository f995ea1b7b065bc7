"""The classifier and the box regression of a region-based detector, with a Criterion."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from corrdet.activation import activation_keys, class_scores, initialize_bias
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion, MatchedPredictions, build_criterion

from ..core.training import BatchPositives, criterion_losses, gather

# Of Detectron2's keys, these do nothing here; they are not in all of its versions.
_SIGMOIDS = ("USE_SIGMOID_CE", "USE_FED_LOSS")
declare(
    "MODEL.ROI_BOX_HEAD", "of CorrdetRCNN, beside Detectron2's keys", **activation_keys("softmax")
)


class CriterionOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with a Criterion.

    With a softmax its weights are Detectron2's; with a sigmoid ``cls_score`` has no background.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        criterion: Criterion,
        activation: str = "softmax",
        prior_prob: float = 0.01,
        samples: bool = True,
        **kwargs,
    ):
        """
        Args:
            input_shape: of a region's features.
            criterion: the losses, for a head of this activation with deltas.
            activation: of the class scores, "softmax" or "sigmoid".
            prior_prob: what scores are about before training, with a sigmoid.
            samples: whether it is trained on a sample of the regions, by whose number sums are
                divided then; if not, by that of the positives.
            kwargs: as detectron2's FastRCNNOutputLayers.
        """
        super().__init__(input_shape, **kwargs)
        self.criterion = criterion
        self.activation = activation
        self.normalizer = None if samples else BatchPositives()
        if activation == "sigmoid":
            self.cls_score = nn.Linear(self.cls_score.in_features, self.num_classes)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            initialize_bias(self.cls_score, activation, prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape):
        parameters = super().from_config(cfg, input_shape)
        for loss_parameter in ("smooth_l1_beta", "box_reg_loss_type", "loss_weight"):
            del parameters[loss_parameter]
        for key in _SIGMOIDS:
            if cfg.MODEL.ROI_BOX_HEAD.get(key):
                raise ConfigError(
                    f"MODEL.ROI_BOX_HEAD.{key} is True, but CorrdetRCNN takes its losses from "
                    "MODEL.CRITERION: expected False, and MODEL.ROI_BOX_HEAD.ACTIVATION 'sigmoid'"
                )
        node = cfg.MODEL.ROI_BOX_HEAD
        criterion = build_criterion(
            cfg,
            activation=node.ACTIVATION,
            has_deltas=True,
            activation_key="MODEL.ROI_BOX_HEAD.ACTIVATION",
        )
        return {
            **parameters,
            "criterion": criterion,
            "activation": node.ACTIVATION,
            "prior_prob": node.PRIOR_PROB,
            "samples": cfg.MODEL.ROI_HEADS.SAMPLE,
        }

    def losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        *,
        is_logged: bool = True,
    ) -> dict[str, Tensor]:
        """The Criterion's losses; see :meth:`match_predictions` for the other arguments.

        The proposals are given ``own_scores``, of the class that they are to have, without
        gradient; 0 of the background.

        Args:
            is_logged: whether it is logged how many positives there are, and how scores and IoUs
                agree.
        """
        matched = self.match_predictions(predictions, proposals)
        scores = torch.zeros_like(matched.labels, dtype=matched.logits.dtype)
        scores[matched.positives] = matched.scores.detach()
        for regions, own in zip(proposals, scores.split(list(map(len, proposals))), strict=True):
            regions.own_scores = own
        num_positives = len(matched.positives)
        if self.normalizer is None:
            # The number of regions, not of positives: each counts the same in every batch.
            normalizer: float | Tensor = max(len(matched.labels), 1)
        else:
            normalizer = self.normalizer(num_positives, matched.logits.device)
        storage = get_event_storage()
        if not is_logged:
            return self.criterion(matched, normalizer, storage.iter)
        storage.put_scalar("roi_head/num_fg_samples", num_positives / len(proposals))
        return criterion_losses(self.criterion, matched, normalizer)

    def match_predictions(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> MatchedPredictions:
        """What the losses read of a batch of regions.

        Args:
            predictions: logits (R, K), or (R, K + 1) of a softmax, and deltas (R, 4 K), or (R, 4)
                class-agnostic.
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
            activation=self.activation,
            image_ids=image_ids,
        )

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> Sequence[Tensor]:
        """Scores (R, K + 1) of each image; the last, of the background, is 0 with a sigmoid.

        Detectron2's inference does not look at it.
        """
        if self.activation == "softmax":
            return super().predict_probs(predictions, proposals)
        scores = F.pad(class_scores(predictions[0], self.activation), (0, 1))
        return scores.split(list(map(len, proposals)))
