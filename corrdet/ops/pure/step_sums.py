"""Sums of H(s_v - s_u) over samples v."""

import torch
from torch import Tensor

from .sums import CHUNK, prefix_sums, searchsorted, sums_before


class StepSums:
    """What positives need of samples v, whose coordinates are negated logits, ascending.

    Args:
        y: (N,) coordinates of the samples v.
        delta: half of the width of H.
        weights: (N,) of the samples.
    """

    def __init__(self, y: Tensor, delta: float, weights: Tensor | None = None):
        self.y, self.delta, self.weights = y, delta, weights
        self.anchor = y[0] if len(y) else y.new_zeros(())

    def window(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """How many samples have H = 1 for each positive, and how many H > 0; (P,) coordinates."""
        full = searchsorted(self.y, q - self.delta)
        return full, torch.maximum(full, searchsorted(self.y, q + self.delta))

    def values(self, begin: int, end: int) -> Tensor:
        distances = (self.y[begin:end] - self.anchor)[None]
        if self.weights is None:
            return distances
        weights = self.weights[None, begin:end]
        return torch.cat([distances * weights, weights])

    def over(self, q: Tensor) -> Tensor:
        """The sums of positives at coordinates (P,)."""
        full, counted = self.window(q)
        sums = sums_before(self.values, len(self.y), torch.cat([full, counted]))
        at_full, at_counted = sums.split(len(q), 1)
        if self.weights is None:
            above, inside = full.to(q.dtype), (counted - full).to(q.dtype)
        else:
            above, inside = at_full[1], at_counted[1] - at_full[1]
        rising = inside * (q - self.anchor) - (at_counted[0] - at_full[0])
        return (above + 0.5 * inside + rising / (2 * self.delta)).clamp(min=0)

    def gradient(self, q: Tensor, shares: Tensor, dtype: torch.dtype) -> Tensor:
        """Sums over positives of shares * H for each sample, (N,), in a dtype.

        Args:
            q: (P,) coordinates of the positives, ascending.
            shares: (P,)
        """
        full, counted = self.window(q)
        # From one of these positions to the next the sum is linear.
        starts = torch.cat([full.new_zeros(1), full, counted]).sort().values
        below = searchsorted(counted, starts, right=True)
        above = searchsorted(full, starts, right=True)
        total = prefix_sums(shares)
        moments = prefix_sums(shares * (q - q[0]))
        inside = total[above] - total[below]
        origin = q[below.clamp(max=len(q) - 1)]
        slope = -inside / (2 * self.delta)
        rising = (moments[above] - moments[below]) / (2 * self.delta) + slope * (origin - q[0])
        value = total[-1] - total[above] + 0.5 * inside + rising
        gradient = self.y.new_empty(self.y.shape, dtype=dtype)
        for begin in range(0, len(self.y), CHUNK):
            y = self.y[begin : begin + CHUNK]
            positions = torch.arange(begin, begin + len(y), device=y.device)
            piece = searchsorted(starts, positions, right=True) - 1
            found = value[piece] + slope[piece] * (y - origin[piece])
            gradient[begin : begin + CHUNK] = found.clamp_(min=0).to(dtype)
        return gradient
