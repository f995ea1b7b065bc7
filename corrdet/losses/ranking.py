"""What the ranking losses have in common: the samples that are ranked, and the value of none."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import one_of

from .global_batch import gather_from_processes, remember
from .matched_predictions import MatchedPredictions

Over = Annotated[
    str,
    one_of(("batch", "image")),
    "whose samples are ranked together: the `batch`'s, or an image's",
]


def ranked_samples(
    matched: MatchedPredictions, margin: float, global_batch: bool, memory: int, state: dict
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and IoUs that a ranking loss is taken of.

    Args:
        matched: the batch of this process, of a sigmoid head.
        margin: negatives that are further than this below every positive do not count in the loss;
            they are not sent, nor kept.
        global_batch: add the samples of the other processes.
        memory: add the negatives of this many batches before, as constants.
        state: where they are kept.

    Returns:
        (S,) logits, (S,) int8 labels, 1, 0 or -1, and (P,) IoUs of the positives in their order.
    """
    logits, labels = matched.logits.flatten(), matched.binary_labels.flatten()
    if not global_batch and not memory:
        return logits, labels, matched.ious.detach()
    positives = matched.logits[matched.positives, matched.classes]
    ious = matched.ious.detach().to(positives.dtype)
    if global_batch:
        positives, ious = gather_from_processes(torch.stack([positives, ious], dim=1)).unbind(dim=1)
        ious = ious.detach()
    negatives = logits[labels == 0]
    if len(positives):
        lowest = positives.detach().amin() - margin
        # A little more than counts, so that rounding decides in the loss alone. Not `>`: NaN stays.
        negatives = negatives[~(negatives < lowest - 1e-5 * (lowest.abs() + margin))]
    else:
        negatives = negatives[:0]
    if global_batch:
        negatives = gather_from_processes(negatives)
    if memory:
        negatives = torch.cat([negatives, remember(state, "negatives", negatives, memory)])
    labels = torch.ones(len(positives) + len(negatives), dtype=torch.int8, device=logits.device)
    labels[len(positives) :] = 0
    return torch.cat([positives, negatives]), labels, ious.detach()


def mean_over_images(
    matched: MatchedPredictions, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """The mean of a ranking loss over the images of the batch that have positives.

    Waits for the device, as the IoUs of each image are told apart.

    Args:
        matched: the batch of this process, of a sigmoid head, its samples image by image.
        loss: of the logits, labels and IoUs of an image, as :func:`ranked_samples` returns them.

    Raises:
        ValueError: it is not known which samples are of which image.
    """
    num_images, num_samples = matched.num_images, len(matched.labels)
    if not num_images or num_samples % num_images:
        raise ValueError(
            "a ranking of each image needs MatchedPredictions with num_images, whose samples are "
            f"image by image, as many of each; got {num_samples} samples and num_images "
            f"{num_images}"
        )
    images = matched.positives // (num_samples // num_images)
    counts = torch.bincount(images, minlength=num_images).tolist()
    losses = map(
        loss,
        matched.logits.reshape(num_images, -1),
        matched.binary_labels.reshape(num_images, -1),
        matched.ious.detach().split(counts),
    )
    return torch.stack(list(losses)).sum() / max(sum(count > 0 for count in counts), 1)


def nan_without_positives(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    """0; or NaN, where logits are not finite and, without positives, a ranking does not show it.

    Args:
        logits, labels, ious: as :func:`ranked_samples` returns them.
    """
    if len(ious):
        return ious.new_zeros(())
    return torch.where(labels < 0, 0.0, logits.detach() * 0).sum()


def scaled_to(reference: Tensor, loss: Tensor) -> Tensor:
    """The loss scaled to the value of a reference, by a constant; scalars."""
    reference, value = reference.detach(), loss.detach()
    return loss * torch.where(value == 0, 1.0, reference / torch.where(value == 0, 1.0, value))
