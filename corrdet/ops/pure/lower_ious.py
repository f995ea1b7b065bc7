"""Sums of the sigmoid and the softplus over the positives of lower IoU."""

import torch
from torch import Tensor

from .cells import Cells
from .pairs import Pairs
from .sorting_errors import blocks_by_bit
from .sums import searchsorted

# With fewer positives, pairs one by one cost less.
FEW = 1024


class LowerIoUs:
    """The pairs of positives u and v of which v has the lower IoU and s_v > s_u - delta.

    Args:
        q: (P,) negated logits, ascending.
        group: (P,) int64, the numbers of the IoUs in ascending order, from 0.
        lam: slope of the sigmoid.
        delta: see above.
        dtype: of the results.
        is_far: whether logits are so large that pairs have to be taken one by one.
    """

    def __init__(
        self, q: Tensor, group: Tensor, lam: float, delta: float, dtype: torch.dtype, is_far: bool
    ):
        self.q, self.group, self.lam, self.delta, self.dtype = q, group, lam, delta, dtype
        few = is_far or len(q) <= FEW
        self.pairs = Pairs(q, lam, delta, group) if few else None

    def sums(self, with_softplus: bool) -> tuple[Tensor, Tensor]:
        """Sums over v for each u of sigmoids, and of softpluses / lam or else 0, each (P,)."""
        if self.pairs is not None:
            return self.pairs.sums(self.q, self.group, with_softplus)[:2]
        return self.by_blocks(self.q, self.group, None, with_softplus)

    def gradient(self, shares: Tensor) -> Tensor:
        """Sums over u for each v of shares * sigmoid, (P,)."""
        if self.pairs is not None:
            return self.pairs.gradient(self.q, shares, self.group)
        # Seen from v, with all turned around, these are sums over a lower group again.
        turned = self.by_blocks(
            -self.q.flip(0), self.group.max() - self.group.flip(0), shares.flip(0), False
        )[0]
        return turned.flip(0)

    def by_blocks(
        self, q: Tensor, group: Tensor, weights: Tensor | None, with_softplus: bool
    ) -> tuple[Tensor, Tensor]:
        """Sums over the samples of a lower group, (P,), at each bit over the lower sibling."""
        count = len(q)
        counted = searchsorted(q, q + self.delta)
        results = torch.zeros_like(q), torch.zeros_like(q)
        for block, order in blocks_by_bit(group):
            ordered = block[order]
            cells = Cells(
                q[order], self.lam, q[0], self.dtype, ordered,
                None if weights is None else weights[order],
            )  # fmt: skip
            upper = (block % 2 == 1).nonzero()[:, 0]
            lower = block[upper] - 1
            keys = ordered * (count + 1) + order
            begins = searchsorted(keys, lower * (count + 1))
            ends = searchsorted(keys, lower * (count + 1) + counted[upper])
            found = cells.sums(q[upper], ends, with_softplus, lower, begins)
            for result, sums in zip(results, found, strict=True):
                result[upper] += sums
        return results
