"""The third branch of FCOS, ATSS and PAA, which tells how good a location or its box is."""

import torch.nn.functional as F
from torch import Tensor

from .detector import Batch, Branch, DensePredictions, per_prior, per_sample

QUALITIES = ("centerness", "iou")


class QualityBranch(Branch):
    """Predicts centerness or IoU, and ranks by the geometric mean of it and the class score.

    So has PAA (Kim & Lee 2020, Eq. 11), and FCOS's authors since Tian et al. 2020. Its loss is not
    the Criterion's: no loss of the papers reads it.
    """

    def __init__(self, quality: str, weight: float):
        """
        Args:
            quality: of QUALITIES.
            weight: of its loss.
        """
        super().__init__()
        self.quality = quality
        self.weight = weight

    def losses(self, batch: Batch, normalizer: float | Tensor) -> dict[str, Tensor]:
        """``loss_quality``: cross entropy over the positives."""
        matched = batch.matched
        targets = matched.ious.detach() if self.quality == "iou" else matched.centerness
        logits = self._positive_logits(batch)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return {"loss_quality": loss / normalizer * self.weight}

    def scores(self, scores: list[Tensor], predictions: DensePredictions) -> list[Tensor]:
        qualities = [per_prior(level, 1).float().sigmoid() for level in predictions.quality]
        return [
            (level_scores * quality).sqrt()
            for level_scores, quality in zip(scores, qualities, strict=True)
        ]

    def positive_scores(self, batch: Batch) -> Tensor:
        return (batch.matched.scores * self._positive_logits(batch).sigmoid()).sqrt()

    @staticmethod
    def _positive_logits(batch: Batch) -> Tensor:
        logits = per_sample(batch.samples.predictions.quality, 1)
        return logits[batch.matched.positives, 0].float()
