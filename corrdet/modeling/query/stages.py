"""Training of detectors that refine the boxes of queries in stages, each matched one-to-one."""

from collections.abc import Iterable, Sequence

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions, smooth_l1_loss
from corrdet.matching import hungarian_matching

from ..core.training import gather_boxes, log_agreement, mean_over_processes


def matching_costs(node) -> dict[str, float]:
    """The weights of :func:`corrdet.matching.hungarian_matching`, as the config has them.

    Args:
        node: the detector's, with the keys ``CLASS_COST``, ``L1_COST`` and ``GIOU_COST``.
    """
    return {
        "classification_weight": node.CLASS_COST,
        "l1_weight": node.L1_COST,
        "giou_weight": node.GIOU_COST,
    }


def match_stages(
    logits: Tensor,
    boxes: Tensor,
    gt_instances: Sequence[Instances],
    costs: dict[str, float],
    *,
    activation: str = "sigmoid",
    has_centers: bool = False,
) -> list[MatchedPredictions]:
    """Match every stage by itself and gather what its losses read.

    Letters: T stages, N images, Q queries.

    Args:
        logits: (T, N, Q, C), or (T, N, Q, C + 1) for a softmax.
        boxes: (T, N, Q, 4) XYXY in pixels.
        gt_instances: the ground truth of the N images.
        costs: of :func:`matching_costs`.
        activation: of the class scores, "sigmoid" or "softmax".
        has_centers: as of :func:`corrdet.modeling.core.training.gather_boxes`.

    Returns:
        of each stage; samples are the Q queries of each image, image by image.
    """
    num_stages = len(logits)
    sizes = [instances.image_size for instances in gt_instances]
    # All stages in one call: what it computes waits for the device once.
    labels, gt_boxes = hungarian_matching(
        logits.flatten(0, 1),
        boxes.flatten(0, 1),
        [instances.gt_boxes.tensor for instances in gt_instances] * num_stages,
        [instances.gt_classes for instances in gt_instances] * num_stages,
        sizes * num_stages,
        activation=activation,
        **costs,
    )
    stages = zip(
        logits.flatten(1, 2),
        labels.view(num_stages, -1),
        gt_boxes.view(num_stages, -1, 4),
        boxes.flatten(1, 2),
        strict=True,
    )
    return [
        gather_boxes(*stage, sizes, activation=activation, has_centers=has_centers)
        for stage in stages
    ]


def objects_normalizer(gt_instances: Sequence[Instances], device: torch.device) -> Tensor:
    """What sums are divided by: all objects, matched or not, on average over the processes."""
    return mean_over_processes(sum(map(len, gt_instances)), device).clamp(min=1)


def stage_losses(
    criteria: Iterable[Criterion],
    matched: Sequence[MatchedPredictions],
    normalizer: float | Tensor,
    l1_weight: float,
) -> dict[str, Tensor]:
    """The losses of all stages, by name; all but the last have their stage in it: ``loss_cls_0``.

    Args:
        criteria: of the stages.
        matched: of :func:`match_stages`.
        normalizer: what sums are divided by. The classification loss of a softmax is divided by
            the number of queries, in which the background counts by its weight: it is a mean.
        l1_weight: of ``loss_l1``, of boxes in units of their image; 0 for none.
    """
    losses, storage = {}, get_event_storage()
    for index, (criterion, found) in enumerate(zip(criteria, matched, strict=True)):
        values, factors = criterion.losses_and_factors(found, normalizer, storage.iter)
        if found.activation == "softmax" and criterion.classification.loss.per_sample:
            weight = criterion.classification.options.get("background_weight", 1.0)
            positives = len(found.positives)
            queries = positives + weight * (len(found.labels) - positives)
            values["loss_cls"] = values["loss_cls"] * (normalizer / max(queries, 1e-6))
        if l1_weight:
            l1 = smooth_l1_loss(*found.delta_pairs, beta=0.0).sum()
            values["loss_l1"] = l1 / normalizer * l1_weight
        suffix = "" if index == len(matched) - 1 else f"_{index}"
        losses |= {name + suffix: loss for name, loss in values.items()}
    # Of the stage that detects.
    log_agreement(storage, matched[-1].scores.detach(), matched[-1].ious.detach(), factors)
    return losses
