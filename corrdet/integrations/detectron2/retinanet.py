"""RetinaNet, which has its losses in the detector itself."""

from typing import Any

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes

from corrdet.losses import Criterion
from corrdet.modeling.core.training import criterion_losses, gather


class CriterionRetinaNet(RetinaNet):
    """Detectron2's RetinaNet; sums are divided by its running mean of positives."""

    def __init__(self, *, criterion: Criterion, **kwargs: Any):
        super().__init__(**kwargs)
        self.criterion = criterion

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        priors = Boxes.cat(anchors).tensor
        matched = gather(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            torch.cat(gt_labels),
            torch.cat(gt_boxes),
            torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1),
            priors.expand(len(gt_labels), -1, -1),
            self.box2box_transform,
            priors_per_level=[len(level) for level in anchors],
        )
        normalizer = self._ema_update("loss_normalizer", max(len(matched.positives), 1), 100)
        return criterion_losses(self.criterion, matched, normalizer)
