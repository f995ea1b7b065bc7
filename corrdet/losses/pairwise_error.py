"""Pairwise errors and Adaptive Pairwise Error ("Revisiting AP Loss for Dense Object Detection:
Adaptive Ranking Pair Selection")."""

from torch import Tensor

from corrdet.ops import smooth_error, step_error
from corrdet.ops._checks import check_positive

DISTANCES = ("step", "sigmoid", "cross_entropy")
BALANCES = ("rank", "negatives")


def pairwise_error_loss(
    logits: Tensor,
    labels: Tensor,
    distance: str = "cross_entropy",
    balance: str = "rank",
    lam: float = 8.0,
    delta: float = 0.5,
) -> Tensor:
    """Pairwise error of positives u and negatives v, Eq. 8.

    The mean over the positives of the sum over the negatives of distance(s_v - s_u), divided by a
    balance constant; only negatives with s_v > s_u - delta count. There is no cap on pairs.

    - ``"step"``: a step that rises linearly over 2 delta; with balance ``"rank"`` the AP Loss
      without interpolation (Table 1, row 1).
    - ``"sigmoid"``: sigmoid(lam x), error-driven (row 2).
    - ``"cross_entropy"``: softplus(lam x) / lam, a loss in the ordinary sense (row 3). Its gradient
      is the error-driven update of ``"sigmoid"``; dividing by lam makes it so.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        labels: (S,) 1 for positives, 0 for negatives, -1 for what is ignored.
        distance: see above.
        balance: ``"rank"``, the positive's rank among all: the sum of the step, or else of the
            sigmoid, over the samples that count, itself as 1; or ``"negatives"``, the number of
            negatives that count (Table 2). No gradient flows through either.
        lam: slope of the sigmoid, positive.
        delta: in logits, positive.

    Returns:
        scalar, at least float32; 0 without positives, NaN for logits that are not finite.

    Raises:
        TypeError, ValueError: an unknown distance or balance, or as the operators.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {BALANCES}, got {balance!r}")
    if distance == "step":
        return step_error(logits, labels, "step" if balance == "rank" else "step_negatives", delta)[
            0
        ]
    return smooth_error(logits, labels, distance, balance, lam, delta, None, False)


def ape_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    lam: float = 8.0,
    weight_by_iou: bool = True,
) -> Tensor:
    """Adaptive Pairwise Error, Eq. 9 and 10, as its authors run it.

    The false positives of a positive u are the negatives and the positives of lower IoU; those with
    s_v > s_u - 4 / lam count. The loss of u is the sum over them of softplus(lam (s_v - s_u)),
    divided by the sum of sigmoid(lam (s_v - s_u)) over all samples that count, u included, which is
    a constant; the total is the mean over the positives, divided by lam. There is no cap on pairs,
    and softplus is linear for large arguments, where public code has a constant without gradient.

    Args:
        logits: (S,) logits of all samples and classes of the batch, in a row.
        labels: (S,) 1 for positives, 0 for negatives, -1 for what is ignored.
        ious: (P,) IoU of each positive's predicted box with its ground truth, in [0, 1], in the
            order of the positives in ``logits``; gets no gradient.
        lam: slope, positive.
        weight_by_iou: weight the loss of each positive by its IoU (Sec. 7, "FCOS 800").

    Returns:
        scalar, at least float32; 0 without positives, NaN for logits or IoUs that are not finite.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.smooth_error`.
    """
    check_positive("lam", lam)
    return smooth_error(logits, labels, "cross_entropy", "rank", lam, 4 / lam, ious, weight_by_iou)
