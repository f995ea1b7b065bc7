"""Average LRP Loss (Oksuz et al. 2020, https://arxiv.org/abs/2009.13592)."""

from torch import Tensor

from corrdet.ops import step_error


def alrp_loss(
    logits: Tensor, labels: Tensor, localization: Tensor, delta: float = 1.0
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
