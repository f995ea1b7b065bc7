"""Every loss of corrdet under its name, as a function of MatchedPredictions for the Criterion.

What each of them is, and where its options come from, is said at the function it calls.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdet.names import unknown_name
from corrdet.ops._checks import check_positive

from .alrp import alrp_loss
from .association import association_loss, check_association_options
from .average_precision import ap_loss
from .correlation import check_correlation_options, correlation_loss
from .distributional_ranking import check_dr_options, dr_loss
from .focal import quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from .global_batch import (
    check_global_batch_options,
    of_all_ranks,
    ranked_samples,
    scores_and_ious,
)
from .gradient_harmonizing import check_ghm_options, check_mu, ghm_c_loss, ghm_r_loss
from .harmonic import (
    check_harmonic_iou_options,
    check_task_contrastive_options,
    harmonic_factors,
    harmonic_iou_loss,
    task_contrastive_loss,
)
from .iou_balanced import (
    check_exponent,
    check_iou_balanced_options,
    iou_balanced_smooth_l1_loss,
    iou_balanced_weights,
)
from .localization import (
    balanced_l1_loss,
    check_balanced_l1_options,
    check_smooth_l1_options,
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    smooth_l1_loss,
)
from .matched_predictions import MatchedPredictions
from .pairwise_error import BALANCES, DISTANCES, ape_loss, pairwise_error_loss
from .rank_sort import rank_sort_loss
from .registry import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES

# ---- Classification, per sample.


def _check_gamma(*, gamma: float, alpha: float = 0.0) -> None:
    check_exponent(gamma=gamma)


def _check_quality_focal(*, beta: float) -> None:
    check_exponent(beta=beta)


def _per_sample(matched: MatchedPredictions, losses: Tensor) -> Tensor:
    """(S, C) losses summed over the classes, 0 for ignored samples."""
    return losses.sum(dim=1) * (matched.labels >= 0)


def _targets(matched: MatchedPredictions, of_positives: float | Tensor = 1.0) -> Tensor:
    """(S, C) a value for each positive at its class, 0 elsewhere."""
    targets = torch.zeros_like(matched.logits)
    if isinstance(of_positives, Tensor):
        of_positives = of_positives.to(targets.dtype)
    targets[matched.positives, matched.classes] = of_positives
    return targets


@CLASSIFICATION_LOSSES.register("sigmoid_focal", activations=("sigmoid",), check=_check_gamma)
def _sigmoid_focal(
    matched: MatchedPredictions, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    return _per_sample(matched, sigmoid_focal_loss(matched.logits, _targets(matched), alpha, gamma))


@CLASSIFICATION_LOSSES.register("sigmoid_cross_entropy", activations=("sigmoid",))
def _sigmoid_cross_entropy(matched: MatchedPredictions) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(matched.logits, _targets(matched), reduction="none")
    return _per_sample(matched, losses)


@CLASSIFICATION_LOSSES.register("softmax_cross_entropy", activations=("softmax",))
def _softmax_cross_entropy(matched: MatchedPredictions) -> Tensor:
    logits, labels = matched.logits, matched.labels
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    # A NaN shows where nothing is trained, too.
    return torch.where(labels < 0, (logits.detach() * 0).sum(dim=1), losses)


@CLASSIFICATION_LOSSES.register(
    "quality_focal", activations=("sigmoid",), check=_check_quality_focal
)
def _quality_focal(matched: MatchedPredictions, *, beta: float = 2.0) -> Tensor:
    return _per_sample(
        matched, quality_focal_loss(matched.logits, _targets(matched, matched.ious.detach()), beta)
    )


@CLASSIFICATION_LOSSES.register("varifocal", activations=("sigmoid",), check=_check_gamma)
def _varifocal(matched: MatchedPredictions, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    return _per_sample(
        matched,
        varifocal_loss(matched.logits, _targets(matched, matched.ious.detach()), alpha, gamma),
    )


# ---- Classification, of the batch as a whole.


@CLASSIFICATION_LOSSES.register(
    "ghm_c", activations=("sigmoid",), check=check_ghm_options, per_sample=False
)
def _ghm_c(
    matched: MatchedPredictions, *, bins: int = 30, momentum: float = 0.75, state: dict
) -> Tensor:
    counts = _running_counts(state, bins, matched.logits)
    keep = matched.labels >= 0
    targets = matched.binary_labels[keep].to(matched.logits.dtype)
    return ghm_c_loss(matched.logits[keep].flatten(), targets.flatten(), bins, momentum, counts)


def _running_counts(state: dict, bins: int, like: Tensor) -> Tensor:
    if "counts" not in state:
        state["counts"] = torch.full((bins,), -1.0, dtype=like.dtype)
    # A copy: what was saved before is not to change.
    state["counts"] = state["counts"].to(like.device, copy=True)
    return state["counts"]


@CLASSIFICATION_LOSSES.register(
    "dr", activations=("sigmoid",), check=check_dr_options, per_sample=False
)
def _dr(
    matched: MatchedPredictions,
    *,
    margin: float = 0.5,
    smoothness: float = 6.0,
    lam_pos: float = 1.0,
    lam_neg: float = 0.0798,
) -> Tensor:
    labels = matched.binary_labels.flatten()
    return dr_loss(matched.logits.flatten(), labels, margin, smoothness, lam_pos, lam_neg)


def _check_ranking(
    *,
    global_batch: bool,
    memory: int,
    interpolate: bool = True,
    weight_by_iou: bool = True,
    self_balance: bool = True,
    **positive: float,
) -> None:
    """Of all ranking losses; any value will do for the switches of some."""
    check_global_batch_options(global_batch, memory)
    for name, value in positive.items():
        check_positive(name, value)


@CLASSIFICATION_LOSSES.register(
    "ap", activations=("sigmoid",), check=_check_ranking, per_sample=False
)
def _ap(
    matched: MatchedPredictions,
    *,
    delta: float = 1.0,
    interpolate: bool = True,
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> Tensor:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    return ap_loss(logits, labels, delta, interpolate) + _unranked(logits, labels, ious)


def _check_pairwise_error(*, distance: str, balance: str, **options) -> None:
    if distance not in DISTANCES:
        raise ValueError(unknown_name("distance", distance, DISTANCES))
    if balance not in BALANCES:
        raise ValueError(unknown_name("balance", balance, BALANCES))
    _check_ranking(**options)


@CLASSIFICATION_LOSSES.register(
    "pairwise_error", activations=("sigmoid",), check=_check_pairwise_error, per_sample=False
)
def _pairwise_error(
    matched: MatchedPredictions,
    *,
    distance: str = "cross_entropy",
    balance: str = "rank",
    lam: float = 8.0,
    delta: float = 0.5,
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> Tensor:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    loss = pairwise_error_loss(logits, labels, distance, balance, lam, delta)
    return loss + _unranked(logits, labels, ious)


@CLASSIFICATION_LOSSES.register(
    "ape", activations=("sigmoid",), check=_check_ranking, per_sample=False
)
def _ape(
    matched: MatchedPredictions,
    *,
    lam: float = 8.0,
    weight_by_iou: bool = True,
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> Tensor:
    logits, labels, ious = ranked_samples(matched, 4 / lam, global_batch, memory, state)
    loss = ape_loss(logits, labels, ious, lam, weight_by_iou)
    return loss + _unranked(logits, labels, ious)


def _unranked(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    """0; or NaN, where logits are not finite and, without positives, a ranking does not show it."""
    if len(ious):
        return ious.new_zeros(())
    return torch.where(labels < 0, 0.0, logits.detach() * 0).sum()


@CLASSIFICATION_LOSSES.register(
    "rank_sort", activations=("sigmoid",), check=_check_ranking, per_sample=False
)
def _rank_sort(
    matched: MatchedPredictions,
    *,
    localization: Tensor,
    delta: float = 0.5,
    self_balance: bool = True,
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> tuple[Tensor, Tensor]:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    # A target has to be a number; that it was none shows in the loss all the same.
    targets = labels.to(ious.dtype).masked_scatter(labels == 1, ious.nan_to_num(1.0))
    ranking, sorting = rank_sort_loss(logits, targets, delta)
    loss = ranking + sorting + ious.sum() * 0 + _unranked(logits, labels, ious)
    if not self_balance:
        return loss, localization
    if global_batch:
        localization = of_all_ranks(localization)
    return loss, _balanced(loss, localization.sum())


@CLASSIFICATION_LOSSES.register(
    "alrp",
    activations=("sigmoid",),
    check=_check_ranking,
    per_sample=False,
    needs_bounded=True,
)
def _alrp(
    matched: MatchedPredictions,
    *,
    localization: Tensor,
    delta: float = 1.0,
    self_balance: bool = True,
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> tuple[Tensor, Tensor]:
    logits, labels, ious = ranked_samples(matched, delta, global_batch, memory, state)
    if global_batch:
        localization = of_all_ranks(localization)
    classification, localization = alrp_loss(logits, labels, localization, delta)
    classification = classification + _unranked(logits, labels, ious)
    if self_balance:
        localization = _balanced(classification + localization, localization)
    return classification, localization


def _balanced(reference: Tensor, loss: Tensor) -> Tensor:
    """The loss scaled to the value of a reference, by a constant."""
    reference, value = reference.detach(), loss.detach()
    return loss * torch.where(value == 0, 1.0, reference / torch.where(value == 0, 1.0, value))


# ---- Localization.


@LOCALIZATION_LOSSES.register("smooth_l1", needs_deltas=True, check=check_smooth_l1_options)
def _smooth_l1(matched: MatchedPredictions, *, beta: float = 0.0) -> Tensor:
    return smooth_l1_loss(matched.deltas, matched.gt_deltas, beta).sum(dim=1)


@LOCALIZATION_LOSSES.register("balanced_l1", needs_deltas=True, check=check_balanced_l1_options)
def _balanced_l1(matched: MatchedPredictions, *, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    return balanced_l1_loss(matched.deltas, matched.gt_deltas, alpha, gamma).sum(dim=1)


def _check_ghm_r(*, mu: float, **options) -> None:
    check_mu(mu)
    check_ghm_options(**options)


@LOCALIZATION_LOSSES.register("ghm_r", needs_deltas=True, check=_check_ghm_r, per_sample=False)
def _ghm_r(
    matched: MatchedPredictions,
    *,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.7,
    state: dict,
) -> Tensor:
    counts = _running_counts(state, bins, matched.deltas)
    return ghm_r_loss(matched.deltas, matched.gt_deltas, mu, bins, momentum, counts)


@LOCALIZATION_LOSSES.register(
    "iou_balanced_smooth_l1", needs_deltas=True, check=check_iou_balanced_options
)
def _iou_balanced_smooth_l1(
    matched: MatchedPredictions,
    *,
    lam: float = 1.5,
    weight: float | None = 3.049,
    delta: float = 0.111,
) -> Tensor:
    return iou_balanced_smooth_l1_loss(
        matched.deltas, matched.gt_deltas, matched.box_ious, lam, weight, delta
    )


@LOCALIZATION_LOSSES.register("iou")
def _iou(matched: MatchedPredictions) -> Tensor:
    return iou_loss(matched.boxes, matched.gt_boxes)


@LOCALIZATION_LOSSES.register("giou", bounded=True)
def _giou(matched: MatchedPredictions) -> Tensor:
    return giou_loss(matched.boxes, matched.gt_boxes)


@LOCALIZATION_LOSSES.register("diou", bounded=True)
def _diou(matched: MatchedPredictions) -> Tensor:
    return diou_loss(matched.boxes, matched.gt_boxes)


@LOCALIZATION_LOSSES.register("ciou", bounded=True)
def _ciou(matched: MatchedPredictions) -> Tensor:
    return ciou_loss(matched.boxes, matched.gt_boxes)


@LOCALIZATION_LOSSES.register("harmonic_iou", bounded=True, check=check_harmonic_iou_options)
def _harmonic_iou(matched: MatchedPredictions, *, gamma: float = 0.8) -> Tensor:
    return harmonic_iou_loss(matched.box_ious, gamma)


def _check_smooth_l1_harmonic_iou(*, beta: float, alpha: float, gamma: float) -> None:
    check_smooth_l1_options(beta)
    check_harmonic_iou_options(gamma)
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be finite and not negative, got {alpha}")


@LOCALIZATION_LOSSES.register(
    "smooth_l1_harmonic_iou", needs_deltas=True, check=_check_smooth_l1_harmonic_iou
)
def _smooth_l1_harmonic_iou(
    matched: MatchedPredictions, *, beta: float = 0.0, alpha: float = 1.5, gamma: float = 0.8
) -> Tensor:
    smooth_l1 = smooth_l1_loss(matched.deltas, matched.gt_deltas, beta).sum(dim=1)
    return smooth_l1 + alpha * harmonic_iou_loss(matched.box_ious, gamma)


# ---- Couplings.


def _check_association(*, max_score: bool, **options) -> None:
    check_association_options(**options)


@COUPLINGS.register("association", check=_check_association)
def _association(
    matched: MatchedPredictions,
    *,
    kind: str = "pse",
    beta: float = 1.0,
    k: float = 1.0,
    max_score: bool = False,
) -> Tensor:
    scores = matched.max_scores if max_score else matched.scores
    return association_loss(scores, matched.ious, kind, beta, k)


def _check_correlation(
    *, coefficient: str, strength, gradient: str, global_batch: bool, memory: int
) -> None:
    check_correlation_options(coefficient, strength, gradient)
    check_global_batch_options(global_batch, memory)


@COUPLINGS.register("correlation", check=_check_correlation)
def _correlation(
    matched: MatchedPredictions,
    *,
    coefficient: str = "concordance",
    strength: float | None = None,
    gradient: str = "scores",
    global_batch: bool = False,
    memory: int = 0,
    state: dict,
) -> Tensor:
    scores, ious = scores_and_ious(matched, global_batch, memory, state, gradient)
    return correlation_loss(scores, ious, coefficient, strength, gradient)


@COUPLINGS.register("harmonic", needs=("classification", "localization"))
def _harmonic(
    matched: MatchedPredictions, *, classification: Tensor, localization: Tensor
) -> tuple[Tensor, Tensor]:
    of_classification, of_localization = harmonic_factors(classification, localization)
    return of_classification * classification, of_localization * localization


@COUPLINGS.register("task_contrastive", check=check_task_contrastive_options)
def _task_contrastive(matched: MatchedPredictions, *, margin: float = 0.2) -> Tensor:
    return task_contrastive_loss(matched.probabilities, matched.classes, matched.ious, margin)


def _check_iou_balanced(*, eta: float) -> None:
    check_exponent(eta=eta)


@COUPLINGS.register("iou_balanced", needs=("classification",), check=_check_iou_balanced)
def _iou_balanced(
    matched: MatchedPredictions,
    *,
    classification: Tensor,
    localization: Tensor,
    eta: float = 1.5,
) -> tuple[Tensor, Tensor]:
    weights = iou_balanced_weights(classification, matched.ious, eta)
    return classification * weights, localization
