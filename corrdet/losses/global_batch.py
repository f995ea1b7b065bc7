"""What a loss reads beyond its own batch: the other processes', and that of recent batches.

Losses of which a value is more than a mean over samples, correlations and rankings, are estimated
badly from the few positives of one GPU.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from corrdet.options import BOOL, Key, at_least

# Options of all losses that can read more than their own batch.
GLOBAL_BATCH_OPTIONS = {
    "global_batch": Key(False, BOOL, "take it of the batches of all processes together"),
    "memory": Key(0, at_least(0), "add those of so many batches before, as constants"),
}


def check_over(*, over: str, global_batch: bool, memory: int, **_) -> None:
    """
    Raises:
        ValueError: a loss of single images is to look beyond its batch.
    """
    if over == "image" and (global_batch or memory):
        raise ValueError(
            "over 'image' has nothing to do with other processes or batches: expected global_batch "
            f"False and memory 0, got {global_batch} and {memory}"
        )


class _OwnGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def gather_from_processes(tensor: Tensor) -> Tensor:
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
    world = _num_processes()
    if world == 1:
        return tensor
    count = torch.tensor([len(tensor)], device=tensor.device)
    all_counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(all_counts, count)
    counts = [int(count) for count in all_counts]
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    parts[dist.get_rank()] = _OwnGradient.apply(tensor, world)
    return torch.cat(parts)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """A tensor of each process, of the same shape, averaged over them; not waited for.

    Every process has to call it as often as the others. There is no gradient.
    """
    tensor = tensor.detach()
    world = _num_processes()
    if world > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= world
    return tensor


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def remember(state: dict, key: str, now: Tensor, memory: int) -> Tensor:
    """What was given for the last ``memory`` batches, without gradient, and keep ``now``.

    Args:
        state: of the loss; holds a list of tensors under ``key``.
        now: (n, ...) of this batch.
        memory: how many batches are kept.

    Returns:
        (N, ...) of the batches before this one, oldest first; on the device of ``now``.
    """
    # A checkpoint may hold more: of a training that remembered more.
    kept = [tensor.to(now.device) for tensor in state.get(key, [])[-memory:]]
    state[key] = [*kept, now.detach()][-memory:]
    return torch.cat([now.detach()[:0], *kept])
