"""SSD, SSDlite."""

from dataclasses import replace

import torch.nn.functional as F
from torchvision.models.detection.ssd import SSD

from corrdet.losses import MatchedPredictions
from corrdet.matching import hard_negative_mining

from .dense import DenseOwner


class CriterionSSD(DenseOwner, SSD):
    def compute_loss(self, *args):
        return self.losses(self.matched(*args))

    def matched(self, targets, head_outputs, anchors, matched_idxs) -> MatchedPredictions:
        """With torchvision's first class, the background, as the last; and easy negatives ignored.

        Negatives are hard by their cross entropy, whichever loss is trained.
        """
        matched = super().matched(targets, head_outputs, anchors, matched_idxs)
        background = matched.logits.shape[1] - 1
        logits = matched.logits.roll(-1, dims=1)
        labels = matched.labels - 1  # of the background: one above the last class before
        hardness = F.cross_entropy(logits.detach(), labels, reduction="none")
        size = len(targets), -1
        trained = hard_negative_mining(
            hardness.view(size), labels.view(size), background, self.neg_to_pos_ratio
        )
        labels[~trained.flatten()] = -1
        return replace(matched, logits=logits, labels=labels, activation="softmax")
