"""Targets of positives that are set beside those of their image or ground truth."""

import torch
from torch import Tensor


def largest_of_group(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(P,) the largest value among the positives of the same group, NaN if one of them is.

    Args:
        values: (P,) not negative.
        groups: (P,) int64 in 0..num_groups-1.
        num_groups: how many there are; some may be empty.

    Raises:
        ValueError: shapes that differ.
    """
    if groups.shape != values.shape:
        raise ValueError(f"groups must have shape {tuple(values.shape)}, got {tuple(groups.shape)}")
    largest = values.new_zeros(num_groups).scatter_reduce(0, groups, values, "amax")
    return largest[groups]


def numbered(rows: Tensor) -> tuple[Tensor, int]:
    """The number of each row among the different ones, (P,) int64, and how many these are.

    Waits for the device.

    Args:
        rows: (P, n).
    """
    different, numbers = torch.unique(rows, dim=0, return_inverse=True)
    return numbers, len(different)
