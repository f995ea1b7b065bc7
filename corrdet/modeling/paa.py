"""PAA (Kim & Lee 2020, https://arxiv.org/abs/2007.08103) and PAA* (Xu et al. 2022, Sec. 6)."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from corrdet.losses import giou_loss, sigmoid_focal_loss
from corrdet.matching import labels_and_boxes, paa_candidates, paa_matching, paa_star_costs
from corrdet.names import unknown_name
from corrdet.ops import elementwise_iou

from .atss import OneAnchorDetector
from .dense import expect
from .score_voting import score_voting

COSTS = ("losses", "scores")


@META_ARCH_REGISTRY.register()
class CorrdetPAA(OneAnchorDetector):
    """A ground truth trains the anchors that do best on it, as a mixture of two Gaussians decides.

    Keys: MODEL.DENSE and MODEL.PAA. ``MODEL.PAA.COST "scores"`` is PAA*.
    """

    # An anchor that overlaps a ground truth may be its positive, wherever its centre is.
    qualities = ("iou",)

    @configurable
    def __init__(
        self,
        *,
        cost: str,
        cost_localization_weight: float,
        iou_threshold: float,
        topk: int,
        vote: bool,
        **kwargs,
    ):
        """
        Args:
            cost: of COSTS: "losses", focal loss plus GIoU loss; "scores", of normalized scores and
                IoUs (PAA*).
            cost_localization_weight: of the GIoU loss in the cost.
            iou_threshold: least IoU of an anchor and the ground truth that it may belong to.
            topk: candidates of a ground truth in a level.
            vote: whether boxes are moved by score voting after NMS.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        self.cost = cost
        self.cost_localization_weight = cost_localization_weight
        self.iou_threshold = iou_threshold
        self.topk = topk
        self.vote = vote

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.PAA
        return super().from_config(cfg) | {
            "cost": node.COST,
            "cost_localization_weight": node.COST_LOCALIZATION_WEIGHT,
            "iou_threshold": node.IOU_THRESHOLD,
            "topk": node.TOPK,
            "vote": node.SCORE_VOTING,
        }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        node = cfg.MODEL.PAA
        if node.COST not in COSTS:
            raise ValueError("MODEL.PAA.COST: " + unknown_name("cost", node.COST, COSTS))
        weight = node.COST_LOCALIZATION_WEIGHT
        expect(weight >= 0, "PAA.COST_LOCALIZATION_WEIGHT", ">= 0", weight)
        expect(0 <= node.IOU_THRESHOLD < 1, "PAA.IOU_THRESHOLD", "in [0, 1)", node.IOU_THRESHOLD)
        expect(node.TOPK >= 1, "PAA.TOPK", ">= 1", node.TOPK)

    @torch.no_grad()
    def label_predictions(
        self, priors: list[Boxes], logits: Tensor, deltas: Tensor, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        num_levels = len(priors)
        levels = torch.cat(
            [
                torch.full((len(of_level),), level, device=logits.device)
                for level, of_level in enumerate(priors)
            ]
        )
        priors = Boxes.cat(priors).tensor
        matched, num_gts = [], 0
        for instances in gt_instances:
            of_image = paa_candidates(priors, instances.gt_boxes.tensor, self.iou_threshold)
            # Ground truths are counted over all images.
            matched.append(torch.where(of_image < 0, -1, of_image + num_gts))
            num_gts += len(instances)
        matched = torch.cat(matched)
        gt_boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
        gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
        labels, gt_boxes = labels_and_boxes(matched, gt_boxes, gt_classes, self.num_classes)

        candidates = torch.nonzero(matched >= 0)[:, 0]
        costs = self.costs(
            logits[candidates].float(),
            self.box2box_transform.apply_deltas(
                deltas[candidates].float(), priors[candidates % len(priors)]
            ),
            labels[candidates],
            gt_boxes[candidates],
            matched[candidates],
            num_gts,
        )
        positive = torch.zeros_like(matched, dtype=torch.bool)
        positive[candidates] = paa_matching(
            costs,
            matched[candidates],
            levels[candidates % len(priors)],
            num_gts,
            num_levels,
            self.topk,
        )
        return torch.where(positive, labels, self.num_classes), gt_boxes

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
            return paa_star_costs(scores, elementwise_iou(boxes, gt_boxes), matched, num_gts)
        targets = torch.zeros_like(logits).scatter(1, classes[:, None], 1.0)
        classification = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0).sum(dim=1)
        return classification + self.cost_localization_weight * giou_loss(boxes, gt_boxes)

    def refine(self, boxes: Tensor, *others: Tensor) -> Tensor:
        """Score voting, where it is wanted."""
        return score_voting(boxes, *others) if self.vote else boxes
