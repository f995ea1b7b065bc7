"""AP Loss (Chen et al. 2019, "Towards Accurate One-Stage Object Detection with AP-Loss")."""

from typing import Annotated

from torch import Tensor

from corrdet.ops import step_error
from corrdet.options import BOOL, POSITIVE, checked

from .global_batch import GLOBAL_BATCH_OPTIONS
from .matched_predictions import MatchedPredictions
from .ranking import nan_without_positives, ranked_samples
from .registry import CLASSIFICATION_LOSSES


@checked
def ap_loss(
    logits: Tensor,
    labels: Tensor,
    delta: Annotated[float, POSITIVE, "half of the width in which the step rises"] = 1.0,
    interpolate: Annotated[
        bool, BOOL, "let a positive's precision be at least that of each one of a lower logit"
    ] = True,
) -> Tensor:
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
    loss = "average_precision" if interpolate else "step"
    return step_error(logits, labels, loss, delta)[0]


@CLASSIFICATION_LOSSES.register(
    "ap",
    options_from=(ap_loss, GLOBAL_BATCH_OPTIONS),
    state_with="memory",
    activations=("sigmoid",),
    per_sample=False,
    definition="`1 - mean of the interpolated precision`, error-driven",
    use="ranks positives above negatives; no weights to tune",
    source="Chen et al. 2019; APE paper, Eq. 3 to 7",
)
def _ap(matched: MatchedPredictions, *, state, delta, interpolate, global_batch, memory) -> Tensor:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    loss = ap_loss(logits, labels, delta, interpolate)
    return loss + nan_without_positives(logits, labels, ious)
