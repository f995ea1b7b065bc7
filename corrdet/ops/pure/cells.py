"""Sums of the sigmoid and the softplus over pairs, by series around the centres of cells.

Cells of one width hold the moments of their samples, those cells that have any. What is so far
above a positive that the sigmoid is 1 is counted, and its distances summed; the cell in which a
positive's window ends is taken up to there, as prefix sums give the moments of any part of a cell.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .series import (
    CELL_WIDTH,
    DEGREES,
    SATURATED,
    VANISHED,
    multiply,
    powers_series,
    sigmoid_rows,
    softplus,
    softplus_rows,
)
from .sums import CHUNK, prefix_sums, searchsorted, sums_before

# Values that are looked up at once, of cells and positives.
LOOKED_UP = 2**19


class Windows(NamedTuple):
    """Which cells count for each positive, as numbers among the cells that have samples; (P,)."""

    first: Tensor  # the first in which the sigmoid is not 1 yet
    last: Tensor  # the one behind the last that counts as a whole, in which the window may end
    limit: Tensor  # as `last`, but not beyond where the sigmoid is 0


def chunks(first: Tensor, last: Tensor, channels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows with the numbers first .. last - 1 in columns, some rows at a time.

    Args:
        first, last: (n,)
        channels: how many values are looked up for each number.

    Yields:
        which rows; (rows, columns) the numbers; (rows, columns) whether there is one.
    """
    lengths = (last - first).clamp(min=0)
    begin = widest = 0
    most = LOOKED_UP // channels
    bounds = []
    for row, length in enumerate([*lengths.tolist(), most + 1]):
        if row > begin and max(widest, length) * (row + 1 - begin) > most:
            bounds.append((begin, row, widest))
            begin, widest = row, 0
        widest = max(widest, length)
    for begin, end, width in bounds:
        if width == 0:
            continue
        columns = torch.arange(width, device=first.device)
        inside = columns < lengths[begin:end, None]
        yield slice(begin, end), torch.where(inside, first[begin:end, None] + columns, 0), inside


class Cells:
    """Samples v in cells, of one block or of several that are summed over apart.

    Coordinates are negated logits.

    Args:
        y: (N,) coordinates of the samples, N > 0, ascending in each block.
        lam: slope of the sigmoid.
        lowest: the least coordinate of a positive: what is above all windows is in no cell.
        dtype: of the results, float32 or float64; it says how far the series go.
        block: (N,) ascending numbers of blocks; or None for one.
        weights: (N,)
    """

    def __init__(
        self,
        y: Tensor,
        lam: float,
        lowest: Tensor,
        dtype: torch.dtype,
        block: Tensor | None = None,
        weights: Tensor | None = None,
    ):
        self.y, self.lam, self.weights = y, lam, weights
        self.degree = DEGREES[dtype]
        self.reach = SATURATED[dtype] / lam
        self.base = lowest - self.reach
        self.scale = lam / CELL_WIDTH
        # Cells are numbered through all blocks, so many apart.
        self.stride = int(self.cell_of(y.max())) + 3
        keys = self.cell_of(y)
        if block is not None:
            keys += block * self.stride
        self.keys, lengths = torch.unique_consecutive(keys, return_counts=True)
        self.starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        # Samples above all windows have cell -1 of their block, whose centre does not matter.
        number = (self.keys + 1) % self.stride - 1
        self.centers = self.base + (number.to(y.dtype) + 0.5) / self.scale

    def cell_of(self, y: Tensor) -> Tensor:
        """The number of the cell of coordinates in their block; -1 for all above the windows."""
        return ((y - self.base) * self.scale).floor_().clamp_(min=-1).long()

    def offsets(self, begin: int, end: int) -> Tensor:
        """Of samples from the centre of their cell upwards, in cells; 0 in cells -1."""
        position = (self.y[begin:end] - self.base) * self.scale
        return torch.where(position < 0, 0, position.floor() + 0.5 - position)

    def moments(self, begin: int, end: int) -> Tensor:
        """Weights of samples times powers of their offsets, (degree + 1, end - begin)."""
        offsets = self.offsets(begin, end)
        power = torch.ones_like(offsets) if self.weights is None else self.weights[begin:end]
        powers = [power]
        for _ in range(self.degree):
            power = power * offsets
            powers.append(power)
        return torch.stack(powers)

    def distances(self, begin: int, end: int) -> Tensor:
        return (self.y[begin:end] - self.base)[None]

    def windows(self, q: Tensor, ends: Tensor, block: Tensor | None = None) -> Windows:
        """Find the cells that count; arguments as of :meth:`sums`."""

        def search(coordinates: Tensor, more: int) -> Tensor:
            cell = (self.cell_of(coordinates) + more).clamp(max=self.stride - 2)
            return searchsorted(self.keys, cell if block is None else cell + block * self.stride)

        first = search(q - self.reach, 0)
        last = torch.maximum(first, searchsorted(self.starts[1:], ends, right=True))
        return Windows(first, last, torch.minimum(last, search(q + VANISHED / self.lam, 1)))

    def sums(
        self,
        q: Tensor,
        ends: Tensor,
        with_softplus: bool,
        block: Tensor | None = None,
        begins: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Over samples: sigmoids, and softpluses / lam or else 0, each (P,).

        Args:
            q: (P,) coordinates of the positives.
            ends: (P,) positions of the first samples that do not count any more.
            with_softplus: whether those are wanted; for samples without weights.
            block: (P,) the blocks that are summed over; or None for the only one.
            begins: (P,) positions at which they begin.
        """
        begins = torch.zeros_like(ends) if begins is None else begins
        windows = self.windows(q, ends, block)
        saturated = torch.minimum(self.starts[windows.first], ends)
        edge = torch.minimum(self.starts[windows.last], ends)
        positions = [self.starts, begins, saturated, edge, ends]
        moments = sums_before(self.moments, len(self.y), torch.cat(positions))
        whole, at_begin, at_saturated, at_edge, at_end = moments.T.split(
            [len(each) for each in positions]
        )
        sigmoids = at_saturated[:, 0] - at_begin[:, 0]
        softpluses = torch.zeros_like(q)
        if with_softplus:
            # Beyond a window the softplus is y, and its sum that of distances.
            values = sums_before(self.distances, len(self.y), torch.cat([begins, saturated]))[0]
            distance = sigmoids * (q - self.base) - (values[len(q) :] - values[: len(q)])
            softpluses += torch.where(saturated > begins, distance, 0)
        self.add_whole_cells(
            q, windows, torch.diff(whole, dim=0), sigmoids, softpluses if with_softplus else None
        )
        # The cell of the edge, as far as it counts.
        some, partial = ends > edge, at_end - at_edge
        logits = self.lam * (q - self.centers[windows.last.clamp(max=len(self.centers) - 1)])
        sigmoid = torch.where(some, logits, -torch.inf).sigmoid()
        sigmoids += powers_series(sigmoid, multiply(partial, sigmoid_rows(self.degree, q)))
        if with_softplus:
            values = powers_series(sigmoid, multiply(partial, softplus_rows(self.degree, q)))
            values += softplus(logits) * partial[:, 0]
            softpluses += torch.where(some, values, 0) / self.lam
        return sigmoids, softpluses

    def add_whole_cells(
        self,
        q: Tensor,
        windows: Windows,
        moments: Tensor,
        sigmoids: Tensor,
        softpluses: Tensor | None,
    ) -> None:
        """Add to sums what the cells between the ends of the windows have.

        Args:
            q: (P,)
            windows: of the positives.
            moments: (cells, degree + 1)
            sigmoids, softpluses: (P,)
        """
        width = self.degree + 1
        parts = [multiply(moments, sigmoid_rows(self.degree, q))]
        if softpluses is not None:
            parts += [multiply(moments, softplus_rows(self.degree, q)), moments[:, :1]]
        table = torch.cat(parts, 1)
        for part, cells, inside in chunks(windows.first, windows.limit, table.shape[1]):
            logits = self.lam * (q[part, None] - self.centers[cells])
            found = table[cells]
            sigmoid = logits.sigmoid() * inside
            sigmoids[part] += powers_series(sigmoid, found[..., :width]).sum(1)
            if softpluses is None:
                continue
            values = softplus(logits) * inside * found[..., -1]
            values += powers_series(sigmoid, found[..., width:-1])
            softpluses[part] += values.sum(1) / self.lam

    def gradient(self, q: Tensor, ends: Tensor, shares: Tensor, dtype: torch.dtype) -> Tensor:
        """Sums over positives of shares * sigmoid for each sample of the only block, (N,).

        Args:
            q: (P,) coordinates of the positives, ascending.
            ends: (P,) positions of the first samples that do not count for them.
            shares: (P,)
            dtype: of the result.
        """
        starts, polynomials = self.polynomials(q, ends, shares)
        gradient = self.y.new_empty(self.y.shape, dtype=dtype)
        for begin in range(0, len(self.y), CHUNK):
            end = min(begin + CHUNK, len(self.y))
            offsets = self.offsets(begin, end)
            positions = torch.arange(begin, end, device=q.device)
            piece = searchsorted(starts, positions, right=True) - 1
            value = polynomials[piece, self.degree]
            for k in range(self.degree - 1, -1, -1):
                value = value * offsets + polynomials[piece, k]
            gradient[begin:end] = value.to(dtype)
        return gradient

    def polynomials(self, q: Tensor, ends: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient as polynomials in the samples' offsets, one from each start on.

        Returns:
            (n,) ascending positions, the first 0; (n, degree + 1) coefficients.
        """
        windows = self.windows(q, ends)
        cells = torch.arange(len(self.keys), device=q.device)
        # As q ascends, so do the bounds of windows: for each cell positives of one kind follow each
        # other, those whose window ends before it, in it, behind it, and those far below it.
        partial_from = searchsorted(windows.last, cells)
        partial_to = searchsorted(windows.last, cells, right=True)
        whole_from = searchsorted(windows.limit, cells, right=True)
        saturated_from = searchsorted(windows.first, cells, right=True)
        rows = sigmoid_rows(self.degree, q).T
        powers = q.new_zeros((len(cells), self.degree + 1))
        for part, positives, inside in chunks(whole_from, saturated_from, 8):
            logits = self.lam * (q[positives] - self.centers[part, None])
            sigmoid = logits.sigmoid() * inside
            power = shares[positives] * sigmoid
            for j in range(self.degree + 1):
                powers[part, j] = power.sum(1)
                power = power * sigmoid
        polynomials = multiply(powers, rows)
        total = prefix_sums(shares)
        polynomials[:, 0] += total[-1] - total[saturated_from]

        # Edges cut cells into pieces.
        edge_cell = windows.last.clamp(max=len(cells) - 1)
        sigmoid = (self.lam * (q - self.centers[edge_cell])).sigmoid()
        exponents = torch.arange(1, self.degree + 2, device=q.device, dtype=q.dtype)
        partial = multiply(shares[:, None] * sigmoid[:, None] ** exponents, rows)
        partial = prefix_sums(partial.T.contiguous()).T
        starts = torch.cat([self.starts[:-1], ends]).sort().values
        cell = searchsorted(self.starts[1:], starts, right=True).clamp(max=len(cells) - 1)
        ended = torch.maximum(searchsorted(ends, starts, right=True), partial_from[cell])
        ended = torch.minimum(ended, partial_to[cell])
        polynomials = polynomials[cell] + partial[partial_to[cell]] - partial[ended]
        return starts, polynomials
