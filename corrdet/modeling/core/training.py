"""From the images of a batch to its losses: what all detectors have in common.

A detector matches its predictions with the ground truth. :func:`gather` makes of that what the
losses read, a normalizer says what sums are divided by, and :func:`criterion_losses` calls the
Criterion and logs how well scores and IoUs agree.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from corrdet.activation import BACKGROUND_LOGITS
from corrdet.losses import Criterion, MatchedPredictions
from corrdet.losses.correlation import (
    average_ranks,
    concordance_correlation,
    pearson_correlation,
)

# How often Detectron2's trainer writes, and over how many iterations it smooths.
WRITER_PERIOD = 20


def batch_images(
    batched_inputs: list[dict], pixel_mean: Tensor, pixel_std: Tensor, size_divisibility: int
) -> ImageList:
    """The images of a batch, normalized and padded to one size.

    Args:
        batched_inputs: of each image ``image``, (channels, H, W).
        pixel_mean, pixel_std: (channels, 1, 1), on the device of the model.
        size_divisibility: of the sides.
    """
    images = [
        (image["image"].to(pixel_mean.device) - pixel_mean) / pixel_std for image in batched_inputs
    ]
    return ImageList.from_tensors(images, size_divisibility)


def ground_truth(
    batched_inputs: list[dict], device: torch.device, *, is_needed: bool
) -> list[Instances] | None:
    """The ``instances`` of each image, on the device; None unless all images have them.

    Raises:
        ValueError: they are needed, as in training.
    """
    if all("instances" in image for image in batched_inputs):
        return [image["instances"].to(device) for image in batched_inputs]
    if is_needed:
        raise ValueError("training needs the ground truth of every image, as 'instances'")
    return None


# ---- What losses read.


def gather(
    logits: Tensor,
    labels: Tensor,
    gt_boxes: Tensor,
    deltas: Tensor,
    priors: Tensor,
    box_coding,
    *,
    activation: str = "sigmoid",
    regresses_deltas: bool = True,
    image_ids: Tensor | None = None,
    priors_per_level: Sequence[int] | None = None,
) -> MatchedPredictions:
    """What the losses read of labelled samples whose boxes are coded by deltas.

    Letters: N images of R priors each, S = N x R samples, image by image, C classes.

    Args:
        logits: (S, C), or (S, C + 1) for a softmax.
        labels: (S,) int64: 0..C-1, C for background, -1 for ignored.
        gt_boxes: (S, 4) the matched ground truth, undefined where the label is not a class.
        deltas: (S, 4), or (S, 4 x C) of each class.
        priors: (N, R, 4) what the deltas change.
        box_coding: with the interface of Detectron2's transforms.
        activation: "sigmoid" or "softmax".
        regresses_deltas: whether losses may compare deltas.
        image_ids: (S,) int64, for samples that are not image by image, with N = 1.
        priors_per_level: how many of the R priors each level of a pyramid has, level by level.
    """
    positives = _positives(logits, labels, activation)
    num_images = len(priors)
    images, indices = positives // priors.shape[1], positives % priors.shape[1]
    gt_boxes, deltas, priors = gt_boxes[positives], deltas[positives], priors[images, indices]
    if deltas.shape[1] > 4:
        deltas = deltas.unflatten(1, (-1, 4))[torch.arange(len(deltas)), labels[positives]]
    deltas = deltas.float()
    levels = None
    if priors_per_level is not None:
        levels = torch.zeros_like(indices)
        for end in itertools.accumulate(priors_per_level[:-1]):
            levels += indices >= end
    return MatchedPredictions(
        logits=logits,
        labels=labels,
        positives=positives,
        boxes=box_coding.apply_deltas(deltas, priors),
        gt_boxes=gt_boxes,
        image_ids=images if image_ids is None else image_ids[positives],
        deltas=deltas if regresses_deltas else None,
        gt_deltas=box_coding.get_deltas(priors, gt_boxes) if regresses_deltas else None,
        activation=activation,
        priors=priors,
        levels=levels,
        num_images=num_images if image_ids is None else None,
        num_levels=None if priors_per_level is None else len(priors_per_level),
    )


def gather_boxes(
    logits: Tensor,
    labels: Tensor,
    gt_boxes: Tensor,
    boxes: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
    activation: str = "sigmoid",
    has_centers: bool = False,
) -> MatchedPredictions:
    """The same of samples that predict boxes: their deltas are boxes in units of their image.

    Args:
        logits, labels, gt_boxes, activation: as of :func:`gather`.
        boxes: (S, 4) XYXY in pixels.
        image_sizes: (height, width) of each of the N images.
        has_centers: whether these are centre and sides, not corners.
    """
    positives = _positives(logits, labels, activation)
    image_ids = positives // (len(labels) // len(image_sizes))
    boxes, gt_boxes = boxes[positives], gt_boxes[positives]
    extents = image_extents(image_sizes, boxes)[image_ids]
    deltas, gt_deltas = boxes / extents, gt_boxes / extents
    if has_centers:
        deltas, gt_deltas = centers_and_sides(deltas), centers_and_sides(gt_deltas)
    return MatchedPredictions(
        logits=logits,
        labels=labels,
        positives=positives,
        boxes=boxes,
        gt_boxes=gt_boxes,
        image_ids=image_ids,
        deltas=deltas,
        gt_deltas=gt_deltas,
        activation=activation,
        num_images=len(image_sizes),
    )


def _positives(logits: Tensor, labels: Tensor, activation: str) -> Tensor:
    background = logits.shape[1] - BACKGROUND_LOGITS[activation]
    return torch.nonzero((labels >= 0) & (labels != background))[:, 0]


def centers_and_sides(boxes: Tensor) -> Tensor:
    """(P, 4) x, y, width, height of boxes XYXY."""
    start, end = boxes.split(2, dim=1)
    return torch.cat([(start + end) / 2, end - start], dim=1)


def image_extents(image_sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(N, 4): width, height, width, height of each image, as a tensor like another."""
    return like.new_tensor([(width, height) * 2 for height, width in image_sizes])


# ---- What sums are divided by.


class BatchPositives(nn.Module):
    """The positives of a batch, on average over all processes, at least 1.

    So have the papers; Detectron2's FCOS takes a running mean of its own process.
    """

    def forward(self, num_positives: int, device: torch.device) -> Tensor:
        return mean_over_processes(num_positives, device).clamp(min=1)


class RunningPositives(nn.Module):
    """A running mean of the positives of a batch, of this process; as Detectron2's RetinaNet.

    It is in state dicts as ``mean``, float64, once there was a batch. State dicts without it, such
    as those of published weights, are no error: training begins with ``initial``.
    """

    def __init__(self, initial: float = 100.0, momentum: float = 0.9):
        """
        Args:
            initial: the mean before the first batch.
            momentum: weight of the mean so far.
        """
        super().__init__()
        self.initial = initial
        self.momentum = momentum
        self.mean: float | None = None

    def forward(self, num_positives: int, device: torch.device) -> float:
        old = self.initial if self.mean is None else self.mean
        self.mean = old * self.momentum + max(num_positives, 1) * (1 - self.momentum)
        return self.mean

    def restore(self, mean: float) -> None:
        """Go on with the mean of a training that was stopped."""
        self.mean = mean

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if self.mean is not None:
            destination[f"{prefix}mean"] = torch.tensor(self.mean, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        mean = state_dict.get(f"{prefix}mean")
        self.mean = None if mean is None else float(mean)


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """A count of each process, averaged over them: a scalar, not waited for."""
    count = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(count)
        count /= comm.get_world_size()
    return count


# ---- The losses, and what is logged.


def criterion_losses(
    criterion: Criterion, matched: MatchedPredictions, normalizer: float | Tensor
) -> dict[str, Tensor]:
    """The losses of a training batch, of which is logged how well scores and IoUs agree."""
    storage = get_event_storage()
    losses, factors = criterion.losses_and_factors(matched, normalizer, storage.iter)
    log_agreement(storage, matched.scores.detach(), matched.ious.detach(), factors)
    return losses


def log_agreement(
    storage: EventStorage, scores: Tensor, ious: Tensor, factors: dict[str, Tensor]
) -> None:
    """Log how scores and IoUs of the batch's positives agree, whenever metrics are written.

    Writes ``correlation/pearson``, ``correlation/spearman`` and ``correlation/concordance``, each
    in [-1, 1]; ``AIC/sum`` and ``AIC/mean``, of abs(score - IoU) (HarmonicDet, Eq. 14); and of each
    factor ``positives/<name>-mean``, ``-p10``, ``-p50`` and ``-p90``.

    Args:
        storage: of the training.
        scores, ious: (P,) of the positives, without gradient.
        factors: (P,) each, by name, by which couplings have multiplied losses.
    """
    if (storage.iter + 1) % WRITER_PERIOD or not len(scores):
        return
    values = {}
    if len(scores) >= 2:
        ranks = average_ranks(scores), average_ranks(ious)
        values["correlation/pearson"] = pearson_correlation(scores, ious)
        values["correlation/spearman"] = pearson_correlation(*ranks)
        values["correlation/concordance"] = concordance_correlation(scores, ious)
    gaps = (scores.float() - ious.float()).abs()
    values["AIC/sum"], values["AIC/mean"] = gaps.sum(), gaps.mean()
    for name, factor in factors.items():
        # Not torch.quantile, which refuses more than 16 million values.
        ordered = factor.float().sort().values
        values[f"positives/{name}-mean"] = factor.float().mean()
        for percent in (10, 50, 90):
            index = round(percent / 100 * (len(ordered) - 1))
            values[f"positives/{name}-p{percent}"] = ordered[index]
    # One copy from the device for all of them.
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    for name, number in zip(values, numbers, strict=True):
        storage.put_scalar(name, number, smoothing_hint=False)


def add_positives(
    outputs: list[dict], matched: MatchedPredictions, scores: Tensor | None = None
) -> None:
    """Give the output of each image its ``positives``, for beta_img.

    Args:
        outputs: of the images of a batch, changed in place.
        matched: of the same batch.
        scores: (P,) that positives are ranked by; by default those of the Criterion.
    """
    scores = matched.scores if scores is None else scores
    for image_id, output in enumerate(outputs):
        own = matched.image_ids == image_id
        output["positives"] = {"scores": scores[own], "ious": matched.ious[own]}
