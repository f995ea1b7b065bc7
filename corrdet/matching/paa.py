"""Probabilistic anchor assignment (Kim & Lee 2020, https://arxiv.org/abs/2007.08103), and PAA*.

PAA decides by what the detector predicts, so its matching takes three steps: by IoU, which ground
truth a prior may belong to; the cost of each such prior, which the detector computes from its
losses, or :func:`paa_star_costs` from scores and IoUs; and which of them the costs make positive.
"""

import torch
from torch import Tensor

from corrdet.ops import pairwise_iou

from .common import check_boxes, check_same_length, check_tensor
from .mixture import fit_two_gaussians

_FLOATING = (torch.float32, torch.float64)


@torch.no_grad()
def paa_candidates(priors: Tensor, gt_boxes: Tensor, iou_threshold: float = 0.1) -> Tensor:
    """Find the ground truth that each prior may be trained towards (Procedure 1, line 3).

    It is the one that the prior overlaps most, if by ``iou_threshold`` or more, or if no prior
    overlaps some ground truth more than this one does: so one smaller than any prior is not lost.

    Letters: R priors, M ground truths.

    Args:
        priors: (R, 4) boxes, XYXY.
        gt_boxes: (M, 4) boxes, XYXY, same dtype.
        iou_threshold: 0.1 in the paper's experiments.

    Returns:
        (R,) int64, index of a ground truth, or -1 for none. Ties go to the first ground truth.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.
    """
    check_boxes("priors", priors)
    check_boxes("gt_boxes", gt_boxes)
    if len(priors) == 0 or len(gt_boxes) == 0:
        return torch.full((len(priors),), -1, device=priors.device)
    ious = pairwise_iou(gt_boxes, priors)
    best, matched = ious.max(dim=0)
    highest = ious.amax(dim=1, keepdim=True)
    is_best_prior = ((ious == highest) & (ious > 0)).any(dim=0)
    return torch.where((best >= iou_threshold) | is_best_prior, matched, -1)


@torch.no_grad()
def paa_star_costs(
    scores: Tensor, ious: Tensor, matched: Tensor, num_gts: int, normalize: bool = True
) -> Tensor:
    """Costs of PAA*, from normalized ranking and localization scores (Xu et al. 2022, Sec. 6).

    ``(1 - norm(score)) + (1 - norm(IoU))``, where norm maps the values of all priors of one ground
    truth linearly to 0..1; where they are all the same, it maps them to 0.

    Args:
        scores: (Q,) each prior's score of the class of its ground truth, in [0, 1]; floating point.
        ious: (Q,) IoU of each prior's predicted box and its ground truth, same dtype.
        matched: (Q,) int64 in 0..num_gts-1, the ground truth of each prior, or -1 for none.
        num_gts: number of ground truths of all images.
        normalize: False for scores and IoUs as they are (Table 6, row 2).

    Returns:
        (Q,) costs in [0, 2], for :func:`paa_matching`; undefined where ``matched`` is -1.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.
    """
    check_tensor("scores", scores, 1, _FLOATING)
    check_tensor("ious", ious, 1, _FLOATING)
    check_tensor("matched", matched, 1, (torch.int64,))
    check_same_length(scores=scores, ious=ious, matched=matched)
    if not normalize:
        return 2 - scores - ious
    # Priors without ground truth are the last group.
    group = torch.where(matched < 0, num_gts, matched)
    return 2 - _normalized(scores, group, num_gts + 1) - _normalized(ious, group, num_gts + 1)


def _normalized(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    extremes = values.new_zeros(num_groups)
    lowest = extremes.scatter_reduce(0, group, values, "amin", include_self=False)[group]
    highest = extremes.scatter_reduce(0, group, values, "amax", include_self=False)[group]
    return torch.where(highest == lowest, 0.0, (values - lowest) / (highest - lowest))


@torch.no_grad()
def paa_matching(
    costs: Tensor,
    matched: Tensor,
    levels: Tensor,
    num_gts: int,
    num_levels: int,
    topk: int = 9,
) -> Tensor:
    """Decide by their costs which priors are positive (Kim & Lee 2020, Procedure 1 and Fig. 3c).

    The candidates of a ground truth are, of each level, the ``topk`` of its priors with the lowest
    costs. A mixture of two Gaussians is fitted to their costs. Of the candidates that belong to its
    first component, the one with the highest likelihood is the boundary: candidates that cost as
    much or less are positive, everything else is background. Where no candidate belongs to the
    first component all are positive, and so is an only candidate.

    All ground truths of a batch are fitted at once. Priors without ground truth may be left out or
    have ``matched`` -1: either way they are not positive. Priors of equal cost are treated alike,
    except that of a level the first ones become candidates. A NaN cost makes the candidates of its
    ground truth positive, so that the losses show it.

    Letters: Q priors of all images.

    Args:
        costs: (Q,) classification plus localization loss of each prior, if it were trained towards
            its ground truth (Eq. 7); or :func:`paa_star_costs`. float32 or float64.
        matched: (Q,) int64 in 0..num_gts-1, the ground truth, counted over all images, of each
            prior, or -1 for none: :func:`paa_candidates` plus the number of ground truths of the
            images before.
        levels: (Q,) int64 in 0..num_levels-1.
        num_gts: number of ground truths of all images.
        num_levels: number of levels.
        topk: candidates of a ground truth in a level, K in the paper.

    Returns:
        (Q,) bool, which are positive.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a topk below 1.
    """
    check_tensor("costs", costs, 1, _FLOATING)
    check_tensor("matched", matched, 1, (torch.int64,))
    check_tensor("levels", levels, 1, (torch.int64,))
    check_same_length(costs=costs, matched=matched, levels=levels)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    if len(costs) == 0 or num_gts == 0:
        return torch.zeros_like(matched, dtype=torch.bool)

    # Sorted by ground truth, level and cost, the candidates of each are the first of a run.
    num_groups = num_gts * num_levels
    group = torch.where(matched < 0, num_groups, matched * num_levels + levels)
    order = costs.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    costs, group = costs[order].double(), group[order]
    rank = torch.arange(len(costs), device=costs.device) - torch.searchsorted(group, group)
    is_candidate = (rank < topk) & (group < num_groups)

    # A row for each ground truth; a slot at the end takes what is no candidate.
    last = num_groups * topk
    slot = torch.where(is_candidate, group * topk + rank, last)
    table = costs.new_zeros(last + 1).scatter(0, slot, costs)[:-1].view(num_gts, -1)
    valid = torch.zeros_like(slot, dtype=torch.bool).new_zeros(last + 1)
    valid = valid.scatter(0, slot, is_candidate)[:-1].view(num_gts, -1)
    boundary = _boundary(table, valid)[(group // num_levels).clamp(max=num_gts - 1)]
    # Written so that NaN is positive.
    positive = is_candidate & ~(costs > boundary)
    return torch.zeros_like(positive).scatter(0, order, positive)


def _boundary(costs: Tensor, valid: Tensor) -> Tensor:
    """(M,) the highest cost of a positive, of the candidates' costs (M, K)."""
    log_joint = fit_two_gaussians(costs, valid).log_joint(costs)
    foreground = valid & (log_joint[..., 0] >= log_joint[..., 1])
    likelihood = torch.where(foreground, log_joint.logsumexp(dim=2), -torch.inf)
    is_peak = foreground & (likelihood == likelihood.amax(dim=1, keepdim=True))
    return torch.where(is_peak, costs, torch.inf).amin(dim=1)
