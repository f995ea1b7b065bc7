"""PAA (Kim & Lee 2020, https://arxiv.org/abs/2007.08103) and PAA* (Xu et al. 2022, Sec. 6)."""

from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from torch import Tensor

from corrdet.config_keys import declare
from corrdet.losses import giou_loss, sigmoid_focal_loss
from corrdet.matching import labels_and_boxes, paa_candidates, paa_matching, paa_star_costs
from corrdet.ops import elementwise_iou
from corrdet.options import BOOL, NOT_NEGATIVE, SHARE_BELOW_1, Key, at_least, default_of, one_of

from .detector import Assignment, Samples
from .one_prior import OnePriorDetector

declare(
    "MODEL.PAA",
    "PAA (Kim & Lee 2020) and PAA* (Xu et al. 2022)",
    IOU_THRESHOLD=Key(
        0.1,
        SHARE_BELOW_1,
        "least IoU of an anchor and the ground truth that it may belong to (Sec. 4.1)",
    ),
    TOPK=Key(
        default_of(paa_matching, "topk"),
        at_least(1),
        "candidates of a ground truth in a level (Sec. 4.1)",
    ),
    COST=Key(
        "losses",
        one_of(("losses", "scores")),
        "what the mixture is fitted to: 'losses' (PAA, Eq. 7); 'scores' for PAA* (APE paper, Sec. "
        "6)",
    ),
    NORMALIZE=Key(
        default_of(paa_star_costs, "normalize"),
        BOOL,
        "with COST 'scores': scores and IoUs of a ground truth are mapped to 0..1; without, the "
        "APE paper (Table 6) has 40.5 AP, where it has 41.1",
    ),
    COST_LOCALIZATION_WEIGHT=Key(
        1.3,
        NOT_NEGATIVE,
        "weight of the GIoU loss in 'losses': mmdetection's, which the thesis and the APE paper "
        "build on; 1.0 in the authors' code",
    ),
    SCORE_VOTING=Key(True, BOOL, "move boxes by score voting after NMS (Eq. 12)"),
)


@META_ARCH_REGISTRY.register()
class CorrdetPAA(OnePriorDetector):
    """A ground truth trains the anchors that do best on it, as a mixture of two Gaussians decides.

    ``MODEL.PAA.COST "scores"`` is PAA*.
    """

    sections = ("MODEL.DENSE", "MODEL.PAA")
    # An anchor that overlaps a ground truth may be its positive, wherever its centre is.
    qualities = ("iou",)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        dense, node = cfg.MODEL.DENSE, cfg.MODEL.PAA
        coding = Box2BoxTransform(weights=dense.BBOX_REG_WEIGHTS)
        parts = cls.parts(
            cfg,
            prior_side=dense.ANCHOR_SCALE,
            box_coding=coding,
            has_scales=True,
            scales_per_octave=dense.SCALES_PER_OCTAVE,
        )
        return parts | {
            "matcher": PAAMatcher(
                coding,
                dense.NUM_CLASSES,
                cost=node.COST,
                localization_weight=node.COST_LOCALIZATION_WEIGHT,
                normalize=node.NORMALIZE,
                iou_threshold=node.IOU_THRESHOLD,
                topk=node.TOPK,
            ),
            "inference": replace(parts["inference"], vote=node.SCORE_VOTING),
        }


class PAAMatcher:
    """Labels all images of a batch together, by what is predicted."""

    def __init__(
        self,
        box_coding,
        num_classes: int,
        *,
        cost: str,
        localization_weight: float,
        normalize: bool,
        iou_threshold: float,
        topk: int,
    ):
        """
        Args:
            box_coding: with the interface of Detectron2's transforms.
            num_classes: C.
            cost: "losses", focal loss plus GIoU loss; "scores", of normalized scores and IoUs
                (PAA*).
            localization_weight: of the GIoU loss in the cost.
            normalize: scores and IoUs, of "scores".
            iou_threshold: least IoU of an anchor and the ground truth that it may belong to.
            topk: candidates of a ground truth in a level.
        """
        self.box_coding = box_coding
        self.num_classes = num_classes
        self.cost = cost
        self.localization_weight = localization_weight
        self.normalize = normalize
        self.iou_threshold = iou_threshold
        self.topk = topk

    @torch.no_grad()
    def __call__(self, samples: Samples, gt_instances: list[Instances]) -> Assignment:
        matched, num_gts = [], 0
        for priors, instances in zip(samples.priors, gt_instances, strict=True):
            image_matches = paa_candidates(priors, instances.gt_boxes.tensor, self.iou_threshold)
            # Ground truths are counted over all images.
            matched.append(torch.where(image_matches < 0, -1, image_matches + num_gts))
            num_gts += len(instances)
        matched = torch.cat(matched)
        gt_boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
        gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
        labels, gt_boxes = labels_and_boxes(matched, gt_boxes, gt_classes, self.num_classes)

        candidates = torch.nonzero(matched >= 0)[:, 0]
        # All images have the same priors.
        priors, indices = samples.priors[0], candidates % samples.priors.shape[1]
        costs = self.costs(
            samples.logits[candidates].float(),
            self.box_coding.apply_deltas(samples.deltas[candidates].float(), priors[indices]),
            labels[candidates],
            gt_boxes[candidates],
            matched[candidates],
            num_gts,
        )
        num_levels = len(samples.priors_per_level)
        levels = torch.cat(
            [
                torch.full((count,), level, device=matched.device)
                for level, count in enumerate(samples.priors_per_level)
            ]
        )
        positive = torch.zeros_like(matched, dtype=torch.bool)
        positive[candidates] = paa_matching(
            costs, matched[candidates], levels[indices], num_gts, num_levels, self.topk
        )
        return Assignment(torch.where(positive, labels, self.num_classes), gt_boxes)

    def costs(
        self,
        logits: Tensor,
        boxes: Tensor,
        classes: Tensor,
        gt_boxes: Tensor,
        matched: Tensor,
        num_gts: int,
    ) -> Tensor:
        """What it would cost to train each candidate towards its ground truth (PAA, Eq. 7).

        The losses of the cost are those of the paper, also where others are trained with: a ranking
        loss has no value for one candidate, and PAA's were compared with the same costs (Xu et al.
        2022, Table 6).

        Args:
            logits: (Q, C) of the candidates.
            boxes: (Q, 4) predicted.
            classes: (Q,) int64, gt_boxes: (Q, 4), of the ground truth of each.
            matched: (Q,) int64 in 0..num_gts-1, which one it is.
            num_gts: of all images.
        """
        if self.cost == "scores":
            scores = logits.gather(1, classes[:, None])[:, 0].sigmoid()
            ious = elementwise_iou(boxes, gt_boxes)
            return paa_star_costs(scores, ious, matched, num_gts, self.normalize)
        targets = torch.zeros_like(logits).scatter(1, classes[:, None], 1.0)
        classification = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0).sum(dim=1)
        return classification + self.localization_weight * giou_loss(boxes, gt_boxes)
