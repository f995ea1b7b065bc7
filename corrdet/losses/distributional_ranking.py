"""DR loss (Qian et al. 2020, "DR Loss: Improving Object Detection by Distributional Ranking",
https://arxiv.org/abs/1907.10156)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.options import NOT_NEGATIVE, POSITIVE, checked

from ._checks import check_same_shape, widened
from .matched_predictions import MatchedPredictions
from .registry import CLASSIFICATION_LOSSES


@checked
def dr_loss(
    logits: Tensor,
    labels: Tensor,
    margin: Annotated[float, NOT_NEGATIVE, "by which P+ is to exceed P-"] = 0.5,
    smoothness: Annotated[float, POSITIVE, "L, of the hinge"] = 6.0,
    lam_pos: Annotated[float, POSITIVE, "how much weights spread over easy positives"] = 1.0,
    lam_neg: Annotated[float, POSITIVE, "how much weights spread over easy negatives"] = 0.0798,
) -> Tensor:
    """Rank the expected score of the worst positives above that of the worst negatives.

    ``softplus(L (P- - P+ + margin)) / L``, L the smoothness. P- is the mean score of the negatives
    weighted by softmax(score / lam_neg), P+ that of the positives weighted by
    softmax(-score / lam_pos). Gradient flows through the weights too.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        labels: (S,) 1 for positives, 0 for negatives, -1 for what is ignored.
        margin: by which P+ is to exceed P-.
        smoothness: of the hinge.
        lam_pos, lam_neg: how much the weights spread over easy samples; 0.0798 = 0.1 / ln 3.5.

    Returns:
        scalar, at least float32. Without positives P+ is 1, as in the authors' program, and without
        negatives P- is 0. NaN, gradients too, for logits that are not finite.

    Raises:
        TypeError, ValueError: shapes that differ, or options that are not positive.
    """
    check_same_shape(logits=logits)
    if labels.shape != logits.shape:
        raise ValueError(
            "labels must have the shape of logits, "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    scores = widened(torch.where(labels < 0, 0, logits))
    # Of an infinite logit the sigmoid is finite; infinity - infinity is not.
    scores = scores.sigmoid() + (scores.detach() - scores.detach())

    def expected(chosen: Tensor, temperature: float, otherwise: float) -> Tensor:
        # Masked instead of selected: a selection would wait for the device to count.
        infinity = torch.full_like(scores, -torch.inf)
        exponent = torch.where(chosen, scores / temperature, infinity)
        highest = exponent.detach().amax() if len(scores) else scores.new_zeros(())
        weights = torch.exp(exponent - highest.nan_to_num(nan=torch.nan, neginf=0.0))
        total = weights.sum()
        mean = (weights * scores).sum() / torch.where(total == 0, 1.0, total)
        return torch.where(total == 0, otherwise, mean)

    positives_score = expected(labels > 0, -lam_pos, 1.0)
    negatives_score = expected(labels == 0, lam_neg, 0.0)
    gap = negatives_score - positives_score + margin
    return F.softplus(smoothness * gap) / smoothness


@CLASSIFICATION_LOSSES.register(
    "dr",
    options_from=(dr_loss,),
    activations=("sigmoid",),
    per_sample=False,
    definition="`softplus(L (P- - P+ + margin)) / L`, expected scores of the hardest negatives and "
    "positives",
    use="baseline; the authors weight it by 4",
    source="Qian et al. 2020",
)
def _dr(matched: MatchedPredictions, *, margin, smoothness, lam_pos, lam_neg) -> Tensor:
    labels = matched.binary_labels.flatten()
    return dr_loss(matched.logits.flatten(), labels, margin, smoothness, lam_pos, lam_neg)
