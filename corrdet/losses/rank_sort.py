"""Rank & Sort Loss (Oksuz et al. 2021, https://arxiv.org/abs/2107.11669)."""

from torch import Tensor

from corrdet.ops import step_error


def rank_sort_loss(logits: Tensor, targets: Tensor, delta: float = 0.5) -> tuple[Tensor, Tensor]:
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
