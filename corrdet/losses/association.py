"""Association loss ("Association Loss for Visual Object Detection"): score and IoU as one."""

import torch
from torch import Tensor

from corrdet.names import unknown_name

from ._checks import check_per_positive, widened

KINDS = ("pse", "pce")

# The least 1 - |p - k I| that PCE takes the logarithm of.
_LEAST = 1e-6


def association_loss(
    scores: Tensor, ious: Tensor, kind: str = "pse", beta: float = 1.0, k: float = 1.0
) -> Tensor:
    """Association loss of each positive; the gradient reaches the scores only.

    - ``"pse"``, proxy squared error, Eq. 8: ``beta * (p - k I)^2``.
    - ``"pce"``, proxy cross entropy: ``-beta * log(1 - |p - k I|)``. With k > 1 the argument of the
      logarithm can fall below 0: it is kept above 1e-6, and has no gradient below.

    Args:
        scores: (P,) p, the score of each positive's ground-truth class, in [0, 1].
        ious: (P,) I, the IoU of each positive's predicted box with its ground truth, in [0, 1].
        kind: ``"pse"`` or ``"pce"``.
        beta: weight.
        k: slope of the relation that is asked for.

    Returns:
        (P,) losses, at least float32.

    Raises:
        TypeError, ValueError: not floating point, shapes other than the same (P,), an unknown kind.
    """
    check_association_options(kind, beta, k)
    check_per_positive(scores=scores, ious=ious)
    difference = widened(scores) - k * widened(ious.detach())
    if kind == "pse":
        return beta * difference.square()
    return -beta * torch.log((1 - difference.abs()).clamp(min=_LEAST))


def check_association_options(kind: str, beta: float, k: float) -> None:
    """
    Raises:
        ValueError: :func:`association_loss` cannot work with these.
    """
    if kind not in KINDS:
        raise ValueError(unknown_name("kind of association loss", str(kind), KINDS))
    for name, value in (("beta", beta), ("k", k)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
