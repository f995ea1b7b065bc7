"""The backward pass of the pairwise errors."""

import torch
from torch import Tensor

from .._operators import operator


@operator(
    "weighted_rows(Tensor grads, Tensor gradients, ScalarType dtype, Tensor? values=None) -> Tensor"
)
def weighted_rows(
    grads: Tensor, gradients: Tensor, dtype: torch.dtype, values: Tensor | None = None
) -> Tensor:
    result = gradients[0] * grads[0]
    for row in range(1, len(gradients)):
        result += gradients[row] * grads[row]
    return result.to(dtype)
