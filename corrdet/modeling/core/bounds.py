"""Bounds of AP at image level ("Correlation Loss", Sec. 3.2.1)."""

import torch
from torch import Tensor

from corrdet.losses import MatchedPredictions


def bound_logits(
    matched: MatchedPredictions, level_logits: list[Tensor], *, upper: bool
) -> list[Tensor]:
    """Logits that give an image's positives their scores in the order of their IoUs, or against it.

    Only the logits of positives for their own class change, and only places.

    Args:
        matched: the priors of a batch, image by image.
        level_logits: the head's, per level (N, A x K, H, W).
        upper: the largest score to the largest IoU, else to the smallest.

    Returns:
        new logits, shaped as the head's.
    """
    logits, num_images = matched.logits.clone(), len(level_logits[0])
    rows, columns = matched.positives, matched.classes
    for image_id in range(num_images):
        own = torch.nonzero(matched.image_ids == image_id)[:, 0]
        values = logits[rows[own], columns[own]].sort().values
        by_iou = own[matched.ious[own].argsort(descending=not upper, stable=True)]
        logits[rows[by_iou], columns[by_iou]] = values

    sizes = [level[0].numel() // logits.shape[1] for level in level_logits]
    levels = logits.view(num_images, -1, logits.shape[1]).split(sizes, dim=1)
    bound = []
    for values, level in zip(levels, level_logits, strict=True):
        height, width = level.shape[-2:]
        values = values.reshape(num_images, height, width, -1)  # (N, H, W, A x K)
        bound.append(values.permute(0, 3, 1, 2))
    return bound
