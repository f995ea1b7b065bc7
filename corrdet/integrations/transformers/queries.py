"""Of DETRs: queries, some of which are matched with a ground truth of their image, one by one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from corrdet.losses import MatchedPredictions

from .._batch import ground_truth


def query_batch(
    outputs: Mapping[str, Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    indices: Sequence[tuple[Tensor, Tensor]],
    num_classes: int,
) -> MatchedPredictions:
    """What losses read of N images of Q queries; IoUs are the same in units of the image.

    Args:
        outputs: ``logits`` (N, Q, C), or (N, Q, C + 1) of a softmax with "no object" last, and
            ``pred_boxes`` (N, Q, 4), centre x, y, width, height in units of the image.
        targets: of each image ``boxes`` (n, 4) likewise, and ``class_labels`` (n,).
        indices: of each image those of the matched queries and, as many, of their ground truths.
        num_classes: C.
    """
    logits = outputs["logits"]
    queries, matches = (torch.cat(part).to(logits.device) for part in zip(*indices, strict=True))
    counts = torch.tensor([len(own) for own, _ in indices])
    images = torch.arange(len(indices)).repeat_interleave(counts).to(logits.device)
    positives, order = (images * logits.shape[1] + queries).sort()
    images, queries, matches = images[order], queries[order], matches[order]
    targets = [{"boxes": own["boxes"], "labels": own["class_labels"]} for own in targets]
    gt_boxes, classes = ground_truth(targets, images, matches)
    labels = torch.full_like(logits[..., 0], num_classes, dtype=torch.int64)
    labels[images, queries] = classes
    deltas = outputs["pred_boxes"][images, queries].float()
    return MatchedPredictions(
        logits=logits.flatten(0, 1),
        labels=labels.flatten(),
        positives=positives,
        boxes=_corners(deltas),
        gt_boxes=_corners(gt_boxes.float()),
        image_ids=images,
        deltas=deltas,
        gt_deltas=gt_boxes.float(),
        activation="softmax" if logits.shape[2] > num_classes else "sigmoid",
        num_images=len(indices),
    )


def _corners(boxes: Tensor) -> Tensor:
    centers, sizes = boxes.split(2, dim=-1)
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
