"""DR loss (Qian et al. 2020, "DR Loss: Improving Object Detection by Distributional Ranking",
https://arxiv.org/abs/1907.10156)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_same_shape, widened


def dr_loss(
    logits: Tensor,
    labels: Tensor,
    margin: float = 0.5,
    smoothness: float = 6.0,
    lam_pos: float = 1.0,
    lam_neg: float = 0.0798,
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
        negatives P- is 0.

    Raises:
        TypeError, ValueError: shapes that differ, or options that are not positive.
    """
    check_dr_options(margin, smoothness, lam_pos, lam_neg)
    check_same_shape(logits=logits)
    if labels.shape != logits.shape:
        raise ValueError(
            "labels must have the shape of logits, "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    scores = widened(logits).sigmoid()

    def expected(chosen: Tensor, temperature: float, otherwise: float) -> Tensor:
        # Masked instead of selected: a selection would wait for the device to count.
        infinity = torch.full_like(scores, -torch.inf)
        exponent = torch.where(chosen, scores / temperature, infinity)
        highest = exponent.detach().amax() if len(scores) else scores.new_zeros(())
        weights = torch.exp(exponent - highest.nan_to_num(nan=torch.nan, neginf=0.0))
        total = weights.sum()
        mean = (weights * scores).sum() / torch.where(total == 0, 1.0, total)
        return torch.where(total == 0, otherwise, mean)

    of_positives = expected(labels > 0, -lam_pos, 1.0)
    of_negatives = expected(labels == 0, lam_neg, 0.0)
    gap = of_negatives - of_positives + margin
    return F.softplus(smoothness * gap) / smoothness


def check_dr_options(margin: float, smoothness: float, lam_pos: float, lam_neg: float) -> None:
    """
    Raises:
        ValueError: a negative margin, or one of the others not positive.
    """
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    for name, value in (("smoothness", smoothness), ("lam_pos", lam_pos), ("lam_neg", lam_neg)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
