"""What a loss reads beyond its own batch: the other processes', and that of recent batches.

Losses of which a value is more than a mean over samples, correlations and rankings, are estimated
badly from the few positives of one GPU.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .matched_predictions import MatchedPredictions


class _OwnGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def of_all_ranks(tensor: Tensor) -> Tensor:
    """Concatenate a tensor of each process along its first dimension, which may differ.

    Every process has to call it as often as the others. Gradient flows to a process's own part,
    multiplied by the number of processes: DistributedDataParallel averages gradients over them, and
    their mean is then the gradient of a single process with the whole batch.

    Args:
        tensor: (n, ...) of this process.

    Returns:
        (N, ...) those of all processes in the order of their ranks; ``tensor`` itself where there
        is one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    world = dist.get_world_size()
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    counts = [int(count) for count in counts]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    parts[dist.get_rank()] = _OwnGradient.apply(tensor, world)
    return torch.cat(parts)


def remember(state: dict, key: str, now: Tensor, memory: int) -> Tensor:
    """What was given for the last ``memory`` batches, without gradient, and keep ``now``.

    Args:
        state: of the loss; holds a list of tensors under ``key``.
        now: (n, ...) of this batch.
        memory: how many batches are kept.

    Returns:
        (N, ...) of the batches before this one, oldest first; on the device of ``now``.
    """
    kept = [tensor.to(now.device) for tensor in state.get(key, [])]
    state[key] = [*kept, now.detach()][-memory:]
    return torch.cat([now.detach()[:0], *kept])


def scores_and_ious(
    matched: MatchedPredictions, global_batch: bool, memory: int, state: dict, gradient: str
) -> tuple[Tensor, Tensor]:
    """Scores and IoUs of the positives that a correlation is taken of.

    Args:
        matched: the batch of this process.
        global_batch: add the positives of the other processes.
        memory: add those of this many batches before, as constants.
        state: where they are kept.
        gradient: which of them carry it: "scores", "ious" or "both".

    Returns:
        (n,) scores and (n,) IoUs.
    """
    # Detached before they are gathered: a branch that is not to be trained gets no gradient at all,
    # rather than zeros.
    scores = matched.scores.detach() if gradient == "ious" else matched.scores
    ious = matched.ious.detach() if gradient == "scores" else matched.ious
    ious = ious.to(scores.dtype)
    if global_batch:
        scores, ious = of_all_ranks(torch.stack([scores, ious], dim=1)).unbind(dim=1)
    if memory:
        scores_before = remember(state, "scores", scores, memory)
        ious_before = remember(state, "ious", ious, memory)
        scores, ious = torch.cat([scores, scores_before]), torch.cat([ious, ious_before])
    return scores, ious


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
        positives, ious = of_all_ranks(torch.stack([positives, ious], dim=1)).unbind(dim=1)
        ious = ious.detach()
    negatives = logits[labels == 0]
    if len(positives):
        lowest = positives.detach().amin() - margin
        # A little more than counts, so that rounding decides in the loss alone. Not `>`: NaN stays.
        negatives = negatives[~(negatives < lowest - 1e-5 * (lowest.abs() + margin))]
    else:
        negatives = negatives[:0]
    if global_batch:
        negatives = of_all_ranks(negatives)
    if memory:
        negatives = torch.cat([negatives, remember(state, "negatives", negatives, memory)])
    labels = torch.ones(len(positives) + len(negatives), dtype=torch.int8, device=logits.device)
    labels[len(positives) :] = 0
    return torch.cat([positives, negatives]), labels, ious.detach()


def check_global_batch_options(global_batch: bool, memory: int) -> None:
    """
    Raises:
        ValueError: a memory that is no number of batches.
    """
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise ValueError(f"memory must be a number of batches, 0 or more, got {memory!r}")
    if not isinstance(global_batch, bool):
        raise ValueError(f"global_batch must be True or False, got {global_batch!r}")
