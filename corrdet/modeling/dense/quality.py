"""The third branch of FCOS, ATSS and PAA, which tells how good a location or its box is."""

import torch
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
        matched, priors = batch.matched, batch.samples.priors
        if self.quality == "iou":
            targets = matched.ious.detach()
        else:
            indices = matched.positives % priors.shape[1]
            targets = centerness(priors[matched.image_ids, indices], matched.gt_boxes)
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


def centerness(priors: Tensor, gt_boxes: Tensor) -> Tensor:
    """How near a location is to the centre of its ground truth (Tian et al. 2019, Eq. 3).

    Args:
        priors: (P, 4) boxes, XYXY, whose centres are the locations.
        gt_boxes: (P, 4) boxes, XYXY, the ground truth of each.

    Returns:
        (P,) 1 at the centre, 0 at the sides and outside.
    """
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    to_start, to_end = centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers
    shorter, longer = torch.minimum(to_start, to_end), torch.maximum(to_start, to_end)
    inside = (shorter > 0).all(dim=1)
    return torch.where(inside, (shorter / longer).prod(dim=1), 0.0).sqrt()
