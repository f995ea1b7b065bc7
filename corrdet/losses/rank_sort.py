"""Rank & Sort Loss (Oksuz et al. 2021, https://arxiv.org/abs/2107.11669)."""

from typing import Annotated

from torch import Tensor

from corrdet.ops import step_error
from corrdet.options import BOOL, POSITIVE, checked

from .global_batch import GLOBAL_BATCH_OPTIONS, gather_from_processes
from .matched_predictions import MatchedPredictions
from .ranking import nan_without_positives, ranked_samples, scaled_to
from .registry import CLASSIFICATION_LOSSES


@checked
def rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    delta: Annotated[float, POSITIVE, "half of the width in which the step rises"] = 0.5,
) -> tuple[Tensor, Tensor]:
    """Ranking and sorting error of Rank & Sort Loss, with identity-update gradients.

    H is a step that rises linearly over 2 delta; a positive counts itself by H(0) = 1/2.

    - Ranking: the mean over positives u of FP_u / rank_u, FP_u = sum over negatives of
      H(s_v - s_u). The update moves v up by H(s_v - s_u) / rank_u / P, and u down by their sum.
    - Sorting: the mean over u of the current minus the target error: the average of
      1 - I_v, weighted by H(s_v - s_u), over all positives, minus the same over those with
      I_v >= I_u. The update moves the positives with I_v < I_u up, in proportion to H, and u down.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        targets: (S,) IoU of each positive, in (0, 1], 0 for negatives, -1 for what is ignored. A
            positive whose IoU is 0 is a negative.
        delta: half of the width in which the step rises, in logits, positive.

    Returns:
        ranking and sorting error, scalars of at least float32; 0 without positives, NaN for logits
        that are not finite.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.step_error`.
    """
    return step_error(logits, targets, "rank_sort", delta)


@CLASSIFICATION_LOSSES.register(
    "rank_sort",
    options_from=(rank_sort_loss, GLOBAL_BATCH_OPTIONS),
    state_with="memory",
    activations=("sigmoid",),
    per_sample=False,
    definition="ranking error `FP / rank` + sorting error of `1 - I` among positives",
    use="ranks by IoU, and weights the box loss by itself",
    source="Oksuz et al. 2021",
)
def _rank_sort(
    matched: MatchedPredictions,
    *,
    localization,
    state,
    delta,
    self_balance: Annotated[
        bool, BOOL, "scale the localization loss to the value of the classification loss"
    ] = True,
    global_batch,
    memory,
) -> tuple[Tensor, Tensor]:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    # A target has to be a number; that it was none shows in the loss all the same.
    targets = labels.to(ious.dtype).masked_scatter(labels == 1, ious.nan_to_num(1.0))
    ranking, sorting = rank_sort_loss(logits, targets, delta)
    loss = ranking + sorting + ious.sum() * 0 + nan_without_positives(logits, labels, ious)
    if not self_balance:
        return loss, localization
    if global_batch:
        localization = gather_from_processes(localization)
    return loss, scaled_to(loss, localization.sum())
