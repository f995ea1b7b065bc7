"""Association loss ("Association Loss for Visual Object Detection"): score and IoU as one."""

from typing import Annotated

import torch
from torch import Tensor

from corrdet.options import BOOL, NOT_NEGATIVE, checked, one_of

from ._checks import check_per_positive, widened
from .matched_predictions import MatchedPredictions
from .registry import COUPLINGS

# The least 1 - |p - k I| that PCE takes the logarithm of.
_LEAST = 1e-6


@checked
def association_loss(
    scores: Tensor,
    ious: Tensor,
    kind: Annotated[
        str, one_of(("pse", "pce")), "proxy squared error, Eq. 8, or proxy cross entropy"
    ] = "pse",
    beta: Annotated[float, NOT_NEGATIVE, "weight"] = 1.0,
    k: Annotated[float, NOT_NEGATIVE, "slope of the relation that is asked for"] = 1.0,
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
    check_per_positive(scores=scores, ious=ious)
    difference = widened(scores) - k * widened(ious.detach())
    if kind == "pse":
        return beta * difference.square()
    return -beta * torch.log((1 - difference.abs()).clamp(min=_LEAST))


@COUPLINGS.register(
    "association",
    options_from=(association_loss,),
    definition="`beta (p - k I)^2` (`pse`) or `-beta log(1 - abs(p - k I))` (`pce`), over `N`",
    reaches="scores",
    use="each score is pulled to its IoU",
    source="Association, Eq. 8, 12",
)
def _association(
    matched: MatchedPredictions,
    *,
    kind,
    beta,
    k,
    max_score: Annotated[
        bool, BOOL, "the highest score of any class in place of that of the ground-truth class"
    ] = False,
) -> Tensor:
    scores = matched.max_scores if max_score else matched.scores
    return association_loss(scores, matched.ious, kind, beta, k)
