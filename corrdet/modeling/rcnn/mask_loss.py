"""The loss of masks of R-CNN where it is not Detectron2's: balanced as RS loss' authors have it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Instances
from torch import Tensor, nn

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses.ranking import scaled_to
from corrdet.options import BOOL, Key, at_least, one_of

declare(
    "MODEL.ROI_MASK_HEAD",
    "of CorrdetRCNN, beside Detectron2's keys; RS-Mask R-CNN (Oksuz et al. 2021) has LOSS dice, "
    "WEIGHTED_BY score, SELF_BALANCE True and MAX_MASKS 200",
    LOSS=Key(
        "cross_entropy",
        one_of(("cross_entropy", "dice")),
        "of the mask of a positive: the mean over its pixels, or 1 - Dice coefficient",
    ),
    WEIGHTED_BY=Key(
        "none",
        one_of(("none", "score")),
        "what weights the masks of positives; the sum is divided by that of the weights",
    ),
    SELF_BALANCE=Key(
        False, BOOL, "scale the loss of masks to the value of the classification loss"
    ),
    MAX_MASKS=Key(
        0, at_least(0), "of a batch, so many masks are trained on, chosen at random; 0 for all"
    ),
)
_KEYS = ("LOSS", "WEIGHTED_BY", "SELF_BALANCE", "MAX_MASKS")


@dataclass
class MaskLoss:
    """The loss of a batch's masks.

    Attributes:
        loss, weighted_by, self_balance, max_masks: as the keys of ``MODEL.ROI_MASK_HEAD``.
    """

    loss: str = "cross_entropy"
    weighted_by: str = "none"
    self_balance: bool = False
    max_masks: int = 0

    @classmethod
    def from_config(cls, cfg, mask_head: nn.Module | None) -> "MaskLoss | None":
        """As the config has it; None where that is Detectron2's.

        Raises:
            ConfigError: another loss, and a mask head that is trained in a way of its own.
        """
        node = cfg.MODEL.ROI_MASK_HEAD
        made = cls(*(node[key] for key in _KEYS))
        if mask_head is None or made == cls():
            return None
        if not isinstance(mask_head, BaseMaskRCNNHead):
            raise ConfigError(
                f"MODEL.ROI_MASK_HEAD.NAME: the loss of {node.NAME} is its own, expected "
                f"{', '.join(_KEYS)} of MODEL.ROI_MASK_HEAD as they are by default"
            )
        return made

    def __call__(
        self,
        head: BaseMaskRCNNHead,
        pooler: ROIPooler,
        features: list[Tensor],
        proposals: list[Instances],
        num_classes: int,
        classification: Tensor,
    ) -> Tensor:
        """
        Args:
            head, pooler: of the masks.
            features: that are pooled.
            proposals: of each image, labelled, with ``own_scores``.
            num_classes: C.
            classification: the value that the loss is scaled to with ``self_balance``.

        Returns:
            a scalar, attached to the graph also without positives.
        """
        positives, _ = select_foreground_proposals(proposals, num_classes)
        positives = self.chosen(positives)
        logits = head.layers(pooler(features, [regions.proposal_boxes for regions in positives]))
        # Images without objects have no masks.
        found = [regions for regions in positives if len(regions)]
        if not found:
            return logits.sum() * 0
        targets = torch.cat(
            [
                regions.gt_masks.crop_and_resize(regions.proposal_boxes.tensor, logits.shape[-1])
                for regions in found
            ]
        )
        classes = torch.cat([regions.gt_classes for regions in found])
        # Of class-agnostic heads all are the first.
        classes = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
        own = logits[torch.arange(len(classes), device=classes.device), classes].float()
        losses = self.each(own.flatten(1), targets.to(own).flatten(1))
        if self.weighted_by == "score":
            weights = torch.cat([regions.own_scores for regions in found])
            loss = (losses * weights).sum() / weights.sum().clamp(min=1e-10)
        else:
            loss = losses.mean()
        loss = scaled_to(classification, loss) if self.self_balance else loss
        return loss * head.loss_weight

    def chosen(self, positives: list[Instances]) -> list[Instances]:
        """At most ``max_masks`` of all images'."""
        counts = list(map(len, positives))
        if not self.max_masks or sum(counts) <= self.max_masks:
            return positives
        is_chosen = torch.zeros(sum(counts), dtype=torch.bool)
        is_chosen[torch.randperm(sum(counts))[: self.max_masks]] = True
        return [
            regions[which.to(regions.gt_classes.device)]
            for regions, which in zip(positives, is_chosen.split(counts), strict=True)
        ]

    def each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(P,) of masks (P, pixels): logits, and 0 or 1."""
        if self.loss == "cross_entropy":
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            return losses.mean(dim=1)
        # Milletari et al. 2016, with squares.
        masks = logits.sigmoid()
        overlap = 2 * (masks * targets).sum(dim=1)
        return 1 - overlap / (masks.square().sum(dim=1) + targets.square().sum(dim=1) + 1e-5)
