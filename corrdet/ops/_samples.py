"""What the pairwise errors share: checks of samples, the backward pass, and help for their twins.

Their gradients are computed with the loss, in rows, one for each part of it; backward weights them.
"""

import torch
from torch import Tensor

from ._checks import check_floating
from ._transforms import differentiable, refuse, register_fake


def check_samples(logits: Tensor, targets: Tensor) -> None:
    """Raise unless both are (S,) on one device, and logits floating point."""
    check_floating("logits", logits)
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if targets.is_complex() or targets.is_quantized:
        raise TypeError(f"targets must be integers or floating point, got {targets.dtype}")
    if logits.dim() != 1:
        raise ValueError(
            f"logits must have shape (S,), all of the batch in a row, got {tuple(logits.shape)}"
        )
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(
            f"targets must be on the device of logits, {logits.device}, got {targets.device}"
        )


def check_per_positive(name: str, values: Tensor, logits: Tensor) -> None:
    """Raise unless `values` is floating point (P,) on the device of `logits`."""
    check_floating(name, values)
    if values.dim() != 1:
        raise ValueError(f"{name} must have shape (P,), got {tuple(values.shape)}")
    if values.device != logits.device:
        raise ValueError(
            f"{name} must be on the device of logits, {logits.device}, got {values.device}"
        )


@register_fake("weighted_rows")
def _(grads, gradients, dtype, values=None):
    return gradients.new_empty(gradients.shape[1], dtype=dtype)


ONCE = (
    "a ranking loss has an error-driven update for its gradient, which is not differentiated "
    "again: use another loss, such as focal loss, in a gradient penalty"
)
REVERSE_MODE = (
    "a ranking loss has an error-driven update for its gradient, in reverse mode alone: use "
    "backward(), torch.autograd.grad or torch.func.grad instead of forward mode (torch.func.jvp)"
)

refuse_forward_mode = refuse(REVERSE_MODE)

# The gradients depend on the values: without these among the arguments, second derivatives would
# be 0 in silence.
weighted_rows = differentiable(
    "weighted_rows", lambda ctx, inputs, output: (), refuse(ONCE), refuse_forward_mode
)


def example_samples(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels of `size` samples, some of them positives, and the positives' IoUs."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator)
    labels = (torch.arange(size) % max(1, round(size**0.5)) == 0).long()
    return logits, labels, torch.rand(int(labels.sum()), generator=generator)


def attach_gradient(value: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """`value` as a tensor whose gradient with respect to `logits` is `gradient`."""
    counted = gradient != 0  # a logit that is ignored may be anything
    surrogate = (torch.where(counted, logits.to(gradient.dtype), 0) * gradient.detach()).sum()
    return value.detach() + (surrogate - surrogate.detach())


def select_samples(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of the positives and of the negatives, and their logits in float64."""
    positives, negatives = (targets > 0).nonzero()[:, 0], (targets == 0).nonzero()[:, 0]
    values = logits.detach().double()
    return positives, negatives, values[positives], values[negatives]


def spread_gradient(
    logits: Tensor, positives: Tensor, on_positives: Tensor, negatives: Tensor, on_negatives: Tensor
) -> Tensor:
    """Gradients of positives and negatives at their positions among the samples, in float64."""
    gradient = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
    return gradient.index_put((positives,), on_positives).index_put((negatives,), on_negatives)


def is_undefined(*logits: Tensor) -> bool:
    """Whether there is a logit that is not finite."""
    return not all(bool(values.isfinite().all()) for values in logits)
