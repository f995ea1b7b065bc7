"""AP Loss (Chen et al. 2019, "Towards Accurate One-Stage Object Detection with AP-Loss")."""

from torch import Tensor

from corrdet.ops import step_error


def ap_loss(logits: Tensor, labels: Tensor, delta: float = 1.0, interpolate: bool = True) -> Tensor:
    """AP Loss, 1 - average precision of the positives among all samples.

    The precision of a positive is its rank among the positives over its rank among all, ranks being
    sums of a step that rises linearly over 2 delta. The gradient is the error-driven update, not a
    derivative.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        labels: (S,) 1 for positives, 0 for negatives, -1 for what is ignored.
        delta: half of the width in which the step rises, in logits, positive.
        interpolate: let the precision of a positive be at least that of each positive of a lower
            logit, and scale its update by (1 - that precision) / (1 - its own).

    Returns:
        scalar in [0, 1], at least float32; 0 without positives, NaN for logits that are not finite.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.step_error`.
    """
    return step_error(logits, labels, "average_precision" if interpolate else "step", delta)[0]
