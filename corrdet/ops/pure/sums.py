"""Prefix sums, and the dtype of sums."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

BLOCK = 1024
# Samples that are worked on at once, so that what is made of them on the way takes little memory.
CHUNK = 128 * BLOCK


@cache
def _has_float64(device_type: str) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device_type).sum()
    except (TypeError, RuntimeError):
        return False
    return True


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype that a device computes in: float64, but float32 on Apple's GPUs."""
    return torch.float64 if _has_float64(device.type) else torch.float32


def prefix_sums(values: Tensor) -> Tensor:
    """Sums of all before each position, (..., n) -> (..., n + 1).

    In blocks of one fixed length, so that neither threads nor a GPU's order of blocks, which in a
    scan of a single row changes from run to run, can change a bit.
    """
    *leading, n = values.shape
    if n < BLOCK and values[..., :1].numel() > 1:
        sums = values.new_zeros((*leading, n + 1))
        torch.cumsum(values, -1, out=sums[..., 1:])
        return sums
    rows = max(2, n // BLOCK + 1)
    blocks = values.new_zeros((*leading, rows * BLOCK))
    blocks[..., 1 : n + 1] = values
    blocks = blocks.view(*leading, rows, BLOCK)
    torch.cumsum(blocks, -1, out=blocks)
    if n >= BLOCK:
        blocks += prefix_sums(blocks[..., -1])[..., :-1, None]
    return blocks.view(*leading, rows * BLOCK)[..., : n + 1]


def total(values: Tensor) -> Tensor:
    """The sum of (n,), in an order that neither threads nor devices change."""
    return prefix_sums(values)[-1]


def searchsorted(edges: Tensor, values: Tensor, right: bool = False) -> Tensor:
    """How many of the ascending `edges` are below each value, or with `right` not above it."""
    return torch.searchsorted(edges.contiguous(), values.contiguous(), right=right)


def sums_before(values_of: Callable[[int, int], Tensor], count: int, ends: Tensor) -> Tensor:
    """Sums over all samples before positions, from values that are made a chunk at a time.

    Args:
        values_of: function of begin and end; returns (channels, end - begin).
        count: of the samples.
        ends: (n,) positions in 0 .. count.

    Returns:
        (channels, n)
    """
    ascending, order = ends.sort(stable=True)
    borders = torch.arange(0, count + 1, CHUNK, device=ends.device)
    cuts = [*searchsorted(ascending, borders).tolist(), len(ends)]
    carried: Tensor | None = None
    found = []
    for number, begin in enumerate(range(0, count + 1, CHUNK)):
        sums = prefix_sums(values_of(begin, min(begin + CHUNK, count)))
        if carried is not None:
            sums = sums + carried[:, None]
        carried = sums[:, -1]
        found.append(sums[:, ascending[cuts[number] : cuts[number + 1]] - begin])
    result = torch.empty_like(torch.cat(found, 1))
    result[:, order] = torch.cat(found, 1)
    return result
