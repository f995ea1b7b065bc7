"""Many small Gaussian mixtures at once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .common import check_same_device, check_tensor


class TwoGaussians(NamedTuple):
    """M mixtures of two one-dimensional Gaussians, all float64.

    Attributes:
        weights: (M, 2), each row sums to 1.
        means: (M, 2).
        variances: (M, 2).
        iterations: (M,) int64, how many steps each fit took.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    iterations: Tensor

    def log_joint(self, values: Tensor) -> Tensor:
        """Logarithm of weight times density, of each value (M, K) in each component: (M, K, 2).

        Its logsumexp is the log-likelihood of a value; its argmax, the component of a value.
        """
        squares = (values.double()[..., None] - self.means[:, None]).square()
        log_densities = -0.5 * (
            math.log(2 * math.pi)
            + self.variances.log()[:, None]
            + squares / self.variances[:, None]
        )
        return self.weights.log()[:, None] + log_densities


@torch.no_grad()
def fit_two_gaussians(
    values: Tensor,
    valid: Tensor,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    regularization: float = 1e-6,
) -> TwoGaussians:
    """Fit a mixture of two Gaussians to the values of each row, by expectation maximization.

    All rows are fitted together on the device. The start is that of PAA (Kim & Lee 2020): weights
    1/2, variances 1, the means the smallest and the largest value of the row. The steps and the end
    are those of scikit-learn's GaussianMixture, whose defaults are the defaults here: a row is left
    as it is when a step has changed its mean log-likelihood by less than ``tolerance``.

    Args:
        values: (M, K) float32 or float64; computed in float64.
        valid: (M, K) bool; the values to fit to.
        max_iterations: largest number of steps.
        tolerance: smallest change that counts.
        regularization: added to every variance.

    Returns:
        the mixtures. A row with a NaN or an infinite value has NaN parameters. Those of a row
        without values are of no meaning.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.
    """
    check_tensor("values", values, 2, (torch.float32, torch.float64))
    check_tensor("valid", valid, 2, (torch.bool,))
    if values.shape != valid.shape:
        raise ValueError(
            "values and valid must have the same shape, "
            f"got {tuple(values.shape)} and {tuple(valid.shape)}"
        )
    check_same_device(values=values, valid=valid)

    values = torch.where(valid, values.double(), 0.0)
    num_rows = len(values)
    counts = valid.sum(dim=1).clamp(min=1)
    active = valid.any(dim=1)
    weights = values.new_full((num_rows, 2), 0.5)
    variances = torch.ones_like(weights)
    means = torch.zeros_like(weights)
    if values.numel() > 0:
        lowest = torch.where(valid, values, torch.inf).amin(dim=1)
        highest = torch.where(valid, values, -torch.inf).amax(dim=1)
        means = torch.where(active[:, None], torch.stack([lowest, highest], dim=1), means)
    mixtures = TwoGaussians(weights, means, variances, torch.zeros_like(counts))
    previous = values.new_full((num_rows,), -torch.inf)
    for _ in range(max_iterations):
        # One small wait for all rows together; rows usually end after a small part of the steps.
        if not active.any():
            break
        log_joint = mixtures.log_joint(values)
        log_likelihoods = log_joint.logsumexp(dim=2)
        responsibilities = (log_joint - log_likelihoods[..., None]).exp() * valid[..., None]
        mean_log_likelihood = (log_likelihoods * valid).sum(dim=1) / counts

        # As in scikit-learn: a component that has lost all values keeps a mean and a variance.
        totals = responsibilities.sum(dim=1) + 10 * torch.finfo(values.dtype).eps
        means = (responsibilities * values[..., None]).sum(dim=1) / totals
        squares = (values[..., None] - means[:, None]).square()
        variances = (responsibilities * squares).sum(dim=1) / totals + regularization
        weights = totals / totals.sum(dim=1, keepdim=True)
        updated = TwoGaussians(weights, means, variances, mixtures.iterations + 1)
        mixtures = TwoGaussians(
            *(
                torch.where(active if old.dim() == 1 else active[:, None], new, old)
                for new, old in zip(updated, mixtures, strict=True)
            )
        )
        active = active & ~((mean_log_likelihood - previous).abs() < tolerance)
        previous = mean_log_likelihood
    return mixtures
