"""Sums of the sigmoid and the softplus over pairs, one by one: for few, and for huge logits.

A chunk of rows at a time, so that no matrix of all pairs is ever made.
"""

import torch
from torch import Tensor

CHUNK = 2**18


def softplus_of_pairs(difference: Tensor, lam: float) -> Tensor:
    """softplus(lam * difference) / lam, where lam * difference may be infinite."""
    rest = torch.log1p(torch.exp(-lam * difference.abs())) / lam
    return difference.clamp(min=0) + rest


class Pairs:
    """All pairs of positives u, rows, and samples v.

    Args:
        y: (N,) coordinates of the samples v, negated logits, ascending.
        lam: slope of the sigmoid.
        delta: samples with s_v > s_u - delta count.
        group: (N,) numbers, of which those of v have to be lower than that of u; or None.
    """

    def __init__(self, y: Tensor, lam: float, delta: float, group: Tensor | None = None):
        self.y, self.lam, self.delta, self.group = y, lam, delta, group

    def chunks(self, q: Tensor, group: Tensor | None):
        """Parts of the rows, their differences of logits, and which count."""
        length = max(1, CHUNK // max(1, len(self.y)))
        for begin in range(0, len(q), length):
            part = slice(begin, begin + length)
            difference = q[part, None] - self.y
            counted = difference > -self.delta
            if self.group is not None and group is not None:
                counted &= self.group < group[part, None]
            yield part, difference, counted

    def sums(self, q: Tensor, group: Tensor | None = None, with_softplus: bool = True):
        """Over samples: sigmoids, softpluses / lam, and how many count, each (P,).

        Args:
            q: (P,) coordinates of the positives.
            group: (P,) their numbers.
            with_softplus: if not, those are 0.
        """
        sigmoids, softpluses, numbers = (torch.zeros_like(q) for _ in range(3))
        for part, difference, counted in self.chunks(q, group):
            sigmoids[part] = (counted * (self.lam * difference).sigmoid()).sum(1)
            numbers[part] = counted.sum(1).to(q.dtype)
            if with_softplus:
                values = softplus_of_pairs(difference, self.lam)
                softpluses[part] = torch.where(counted, values, 0).sum(1)
        return sigmoids, softpluses, numbers

    def gradient(self, q: Tensor, shares: Tensor, group: Tensor | None = None) -> Tensor:
        """Sums over positives of shares * sigmoid for each sample, (N,)."""
        gradient = torch.zeros_like(self.y)
        for part, difference, counted in self.chunks(q, group):
            pairs = counted * (self.lam * difference).sigmoid()
            gradient += (shares[part, None] * pairs).sum(0)
        return gradient
