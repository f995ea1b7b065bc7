"""Taylor series of the sigmoid and of the softplus around the centres of cells.

Derivatives of the sigmoid are polynomials in the sigmoid, so that each coefficient of a series is a
row of numbers times the powers of the sigmoid at the centre.
"""

from functools import cache

import torch
from torch import Tensor

# As in csrc/smooth_error/sigmoid_series.h: width of cells in y = lambda (s_v - s_u), degrees that
# leave 3e-7 and 6e-14 of the sums, and from where on the sigmoid is 1 as far as the dtype can tell.
CELL_WIDTH = 0.5
DEGREES = {torch.float32: 5, torch.float64: 11}
SATURATED = {torch.float32: 17.0, torch.float64: 37.0}
# The sigmoid of less than minus this is 0, in float64 too.
VANISHED = 746.0


@cache
def _sigmoid_rows(degree: int) -> list[list[float]]:
    """[k][j]: what sigma^(j + 1) has in the coefficient of z^k in sigma(y + CELL_WIDTH * z)."""
    rows = [[1.0] + [0.0] * degree]
    for k in range(degree):
        following = [0.0] * (degree + 1)
        for j, factor in enumerate(rows[-1]):
            # d sigma^(j + 1) / dy = (j + 1) (sigma^(j + 1) - sigma^(j + 2))
            change = factor * (j + 1) * CELL_WIDTH / (k + 1)
            following[j] += change
            if j < degree:
                following[j + 1] -= change
        rows.append(following)
    return rows


def sigmoid_rows(degree: int, like: Tensor) -> Tensor:
    """(degree + 1, degree + 1), by power of z and power of the sigmoid, less 1."""
    return like.new_tensor(_sigmoid_rows(degree))


def softplus_rows(degree: int, like: Tensor) -> Tensor:
    """The same of softplus(y + CELL_WIDTH * z), but for the softplus at the centre, times z^0."""
    rows = sigmoid_rows(degree, like)
    scale = CELL_WIDTH / torch.arange(1, degree + 1, dtype=like.dtype, device=like.device)
    return torch.cat([torch.zeros_like(rows[:1]), rows[:-1] * scale[:, None]])


def multiply(matrix: Tensor, rows: Tensor) -> Tensor:
    """Their product, which autocast does not see."""
    return (matrix[..., :, None] * rows).sum(-2)


def powers_series(sigmoid: Tensor, coefficients: Tensor) -> Tensor:
    """Sum over j of coefficients[..., j] * sigmoid^(j + 1)."""
    value = coefficients[..., -1]
    for j in range(coefficients.shape[-1] - 2, -1, -1):
        value = value * sigmoid + coefficients[..., j]
    return value * sigmoid


def softplus(y: Tensor) -> Tensor:
    """log(1 + exp(y)), as exactly as float64 can tell; PyTorch's own is y from 20 on."""
    return torch.nn.functional.softplus(y, threshold=40.0)
