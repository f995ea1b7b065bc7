"""Pairwise errors and Adaptive Pairwise Error ("Revisiting AP Loss for Dense Object Detection:
Adaptive Ranking Pair Selection")."""

from collections.abc import Callable
from typing import Annotated, Any

from torch import Tensor

from corrdet.ops import smooth_error, step_error
from corrdet.ops.kernels.smooth_error import BALANCES, DISTANCES
from corrdet.options import BOOL, POSITIVE, checked, one_of

from .global_batch import GLOBAL_BATCH_OPTIONS, check_over
from .matched_predictions import MatchedPredictions
from .ranking import Over, mean_over_images, nan_without_positives, ranked_samples
from .registry import CLASSIFICATION_LOSSES


@checked
def pairwise_error_loss(
    logits: Tensor,
    labels: Tensor,
    distance: Annotated[
        str, one_of(("step", *DISTANCES)), "what a pair adds, of s_v - s_u"
    ] = "cross_entropy",
    balance: Annotated[str, one_of(BALANCES), "what the sum of a positive is divided by"] = "rank",
    lam: Annotated[float, POSITIVE, "slope of the sigmoid"] = 8.0,
    delta: Annotated[
        float,
        POSITIVE,
        "half of the width in which the step rises; of the smooth distances, how far below a "
        "positive negatives count",
    ] = 0.5,
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
    if distance == "step":
        loss = "step" if balance == "rank" else "step_negatives"
        return step_error(logits, labels, loss, delta)[0]
    return smooth_error(logits, labels, distance, balance, lam, delta, None, False)


@CLASSIFICATION_LOSSES.register(
    "pairwise_error",
    options_from=(pairwise_error_loss, GLOBAL_BATCH_OPTIONS),
    check=check_over,
    state_with="memory",
    activations=("sigmoid",),
    per_sample=False,
    definition="mean over positives of the sum over negatives of `distance(s_v - s_u)`, over a "
    "balance",
    use="the ablation of the APE paper",
    source="APE paper, Eq. 8, Tables 1, 2",
)
def _pairwise_error(
    matched: MatchedPredictions,
    *,
    state,
    distance,
    balance,
    lam,
    delta,
    over: Over = "batch",
    global_batch,
    memory,
) -> Tensor:
    def loss(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        return pairwise_error_loss(logits, labels, distance, balance, lam, delta)

    return _of_ranked(loss, matched, delta, over, global_batch, memory, state)


@checked
def ape_loss(
    logits: Tensor,
    labels: Tensor,
    ious: Tensor,
    lam: Annotated[float, POSITIVE, "slope of the sigmoid"] = 8.0,
    weight_by_iou: Annotated[bool, BOOL, "weight the loss of each positive by its IoU"] = True,
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
    return smooth_error(
        logits, labels, "cross_entropy", "rank", lam, _margin(lam), ious, weight_by_iou
    )


def _margin(lam: float) -> float:
    """How far below a positive other samples count."""
    return 4 / lam


@CLASSIFICATION_LOSSES.register(
    "ape",
    options_from=(ape_loss, GLOBAL_BATCH_OPTIONS),
    check=check_over,
    state_with="memory",
    activations=("sigmoid",),
    per_sample=False,
    definition="as `pairwise_error`, where positives of lower IoU are negatives too, weighted by "
    "`I`",
    use="ranks by IoU: the best of the ranking losses in its paper",
    source="APE paper, Eq. 9, 10",
)
def _ape(
    matched: MatchedPredictions,
    *,
    state,
    lam,
    weight_by_iou,
    over: Over = "batch",
    global_batch,
    memory,
) -> Tensor:
    def loss(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        return ape_loss(logits, labels, ious, lam, weight_by_iou)

    return _of_ranked(loss, matched, _margin(lam), over, global_batch, memory, state)


def _of_ranked(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    matched: MatchedPredictions,
    margin: float,
    over: str,
    *batches: Any,
) -> Tensor:
    """A loss of logits, labels and IoUs over the samples that are ranked together."""

    def with_undefined(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        return loss(logits, labels, ious) + nan_without_positives(logits, labels, ious)

    if over == "image":
        return mean_over_images(matched, with_undefined)
    return with_undefined(*ranked_samples(matched, margin, *batches))
