"""Average LRP Loss (Oksuz et al. 2020, https://arxiv.org/abs/2009.13592)."""

from typing import Annotated

from torch import Tensor

from corrdet.ops import step_error
from corrdet.options import BOOL, POSITIVE, checked

from .global_batch import GLOBAL_BATCH_OPTIONS, gather_from_processes
from .matched_predictions import MatchedPredictions
from .ranking import nan_without_positives, ranked_samples, scaled_to
from .registry import CLASSIFICATION_LOSSES


@checked
def alrp_loss(
    logits: Tensor,
    labels: Tensor,
    localization: Tensor,
    delta: Annotated[float, POSITIVE, "half of the width in which the step H rises"] = 1.0,
) -> tuple[Tensor, Tensor]:
    """Classification and localization part of aLRP Loss; their sum is the loss.

    Classification: 1 - mean precision of the positives. Its update takes the localization into
    account: positive u moves down by (FP_u + the localization losses of the other positives,
    weighted by H(s_v - s_u)) / rank_u / P, and the negatives up by the same, in proportion to H. A
    positive without false positives stays.

    Localization: the mean over u of the localization losses of the positives with s_v >= s_u,
    itself included, over rank_u, which is a constant.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        labels: (S,) 1 for positives, 0 for negatives, -1 for what is ignored.
        localization: (P,) localization loss of each positive in the order of the positives in
            ``logits``, for instance 1 - GIoU.
        delta: half of the width in which the step H rises, in logits, positive.

    Returns:
        classification part, differentiable in ``logits``, and localization part, differentiable in
        ``localization``: scalars of at least float32; 0 without positives, NaN for logits that are
        not finite.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.step_error`.
    """
    return step_error(logits, labels, "alrp", delta, localization)


@CLASSIFICATION_LOSSES.register(
    "alrp",
    options_from=(alrp_loss, GLOBAL_BATCH_OPTIONS),
    state_with="memory",
    activations=("sigmoid",),
    per_sample=False,
    needs_bounded=True,
    weights_positives=True,
    definition="`1 - mean precision` for the classification, whose update adds the localization "
    "losses; for the boxes the mean over positives of the localization losses ranked above it, "
    "over its rank",
    use="one loss for both branches; needs a bounded localization loss",
    source="Oksuz et al. 2020",
)
def _alrp(
    matched: MatchedPredictions,
    *,
    localization,
    state,
    delta,
    self_balance: Annotated[
        bool, BOOL, "scale the localization part to the value of the whole"
    ] = True,
    global_batch,
    memory,
) -> tuple[Tensor, Tensor]:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    if global_batch:
        localization = gather_from_processes(localization)
    classification, localization = alrp_loss(logits, labels, localization, delta)
    classification = classification + nan_without_positives(logits, labels, ious)
    if self_balance:
        localization = scaled_to(classification + localization, localization)
    return classification, localization
