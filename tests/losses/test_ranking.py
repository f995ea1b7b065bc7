"""The ranking losses against loops over the positives, written from the papers' algorithms."""

import math

import pytest
import torch
import torch.nn.functional as F

from corrdet.losses import alrp_loss, ap_loss, ape_loss, pairwise_error_loss, rank_sort_loss
from tests.helpers.ops import assert_near


def batch(positives=12, negatives=80, seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 5)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    logits = torch.randn(len(labels), generator=generator, dtype=torch.float64) - 1.0 * (labels < 1)
    ious = torch.rand(positives, generator=generator, dtype=torch.float64) * 0.9 + 0.1
    if ties:
        logits, ious = (logits * 3).round() / 3, (ious * 4).ceil() / 4
    return logits, labels, ious


def gradient_of(value, inputs):
    return torch.autograd.grad(value, inputs, retain_graph=True)[0]


def step(x, delta):
    return (x / (2 * delta) + 0.5).clamp(0, 1)


@pytest.mark.parametrize("interpolate", (True, False))
@pytest.mark.parametrize("delta", (1.0, 0.25))
@pytest.mark.parametrize("ties", (False, True))
def test_ap_loss_follows_the_loop(ties, delta, interpolate):
    """Chen et al. 2019: positives in ascending order, with the largest precision."""
    logits, labels, _ = batch(ties=ties)
    s, n = logits[labels == 1], logits[labels == 0]
    on_positives, on_negatives = torch.zeros_like(s), torch.zeros_like(n)
    precisions, largest = [], 0.0
    for u in s.argsort():
        above = step(s - s[u], delta)
        above[u] = 1.0  # itself
        update = step(n - s[u], delta)
        precision = above.sum() / (above.sum() + update.sum())
        update = update / (above.sum() + update.sum())
        if interpolate and precision < largest:
            update = update * (1 - largest) / (1 - precision)
            precision = largest
        largest = max(largest, precision)
        precisions.append(precision)
        on_negatives += update
        on_positives[u] = -update.sum()
    logits.requires_grad_()
    loss = ap_loss(logits, labels, delta, interpolate)
    assert_near(loss.detach(), 1 - torch.stack(precisions).mean())
    gradient = gradient_of(loss, logits)
    assert_near(gradient[labels == 1], on_positives / len(s))
    assert_near(gradient[labels == 0], on_negatives / len(s))
    assert gradient[labels == -1].eq(0).all()


def test_interpolation_matters_and_by_default_is_on():
    logits, labels, _ = batch(seed=1)
    assert ap_loss(logits, labels) < ap_loss(logits, labels, interpolate=False)
    assert ap_loss(logits, labels) == ap_loss(logits, labels, 1.0, True)


def test_average_precision_of_separated_samples():
    """With logits far apart, 1 - AP as a table of ranks gives it."""
    logits = torch.tensor([9.0, 6.0, 3.0, 0.0, -3.0])
    labels = torch.tensor([1, 0, 1, 0, 1])
    assert math.isclose(ap_loss(logits, labels), 1 - (1 + 2 / 3 + 3 / 5) / 3, rel_tol=1e-6)
    # A positive below others gets their precision: here the last has 3/4, the second 2/3.
    labels = torch.tensor([1, 0, 1, 1, 0])
    assert math.isclose(ap_loss(logits, labels), 1 - (1 + 3 / 4 + 3 / 4) / 3, rel_tol=1e-6)


@pytest.mark.parametrize("balance", ("rank", "negatives"))
@pytest.mark.parametrize("distance", ("step", "sigmoid", "cross_entropy"))
def test_pairwise_error_follows_the_loop(distance, balance):
    """Adaptive Ranking Pair Selection, Eq. 8."""
    logits, labels, _ = batch()
    lam, delta = 5.0, 0.7
    leaf = logits.clone().requires_grad_()
    s, n = leaf[labels == 1], leaf[labels == 0]
    total, update = 0.0, 0.0
    for u in range(len(s)):
        counted = n[n > s[u] - delta] - s[u]
        others = torch.cat([s[:u], s[u + 1 :]]) - s[u]
        if distance == "step":
            pairs, ranks = step(counted, delta), step(others, delta)
        else:
            pairs = (lam * counted).sigmoid()
            ranks = (lam * others[others > -delta]).sigmoid()
        constant = (1 + ranks.sum() + pairs.sum()) if balance == "rank" else len(counted)
        constant = float(torch.as_tensor(constant).detach()) or 1.0
        # The update is the gradient of the sum of distances, each with the pair's error as slope.
        update = update + (pairs.detach() * counted).sum() / constant
        if distance == "cross_entropy":
            pairs = F.softplus(lam * counted, threshold=100) / lam
        total = total + pairs.sum() / constant
    expected = gradient_of(update / len(s), leaf)
    logits.requires_grad_()
    loss = pairwise_error_loss(logits, labels, distance, balance, lam, delta)
    assert_near(loss.detach(), (total / len(s)).detach())
    assert_near(gradient_of(loss, logits), expected)
    if distance == "cross_entropy" and balance == "negatives":
        assert_near(gradient_of(total / len(s), leaf), expected)


def test_cross_entropy_has_the_update_of_the_sigmoid():
    """Table 1 of the paper: error-driven update and cross entropy do the same."""
    logits, labels, _ = batch()
    logits.requires_grad_()
    for balance in ("rank", "negatives"):
        gradients = [
            gradient_of(pairwise_error_loss(logits, labels, distance, balance), logits)
            for distance in ("sigmoid", "cross_entropy")
        ]
        assert torch.equal(*gradients)


def test_step_is_ap_loss_without_interpolation():
    logits, labels, _ = batch()
    step_loss = pairwise_error_loss(logits, labels, "step", "rank", delta=0.8)
    assert torch.equal(step_loss, ap_loss(logits, labels, 0.8, interpolate=False))


@pytest.mark.parametrize("weight_by_iou", (True, False))
@pytest.mark.parametrize("ties", (False, True))
def test_ape_follows_the_loop(ties, weight_by_iou):
    """Algorithm 1 of the paper: the negatives of each positive grow by those of lower IoU."""
    logits, labels, ious = batch(ties=ties)
    lam = 8.0
    leaf = logits.clone().requires_grad_()
    s, n = leaf[labels == 1], leaf[labels == 0]
    total = 0.0
    for u in range(len(s)):
        false = torch.cat([n, s[ious < ious[u]]]) - s[u]
        true = s[ious >= ious[u]] - s[u]
        false, true = false[false > -4 / lam], true[true > -4 / lam]
        balance = (lam * false).sigmoid().sum() + (lam * true).sigmoid().sum()
        weight = ious[u] if weight_by_iou else 1.0
        total = total + weight * F.softplus(lam * false, threshold=100).sum() / balance.detach()
    expected = total / len(s) / lam
    logits.requires_grad_()
    loss = ape_loss(logits, labels, ious, lam, weight_by_iou)
    assert_near(loss.detach(), expected.detach())
    assert_near(gradient_of(loss, logits), gradient_of(expected, leaf))


def test_worst_ranked_pairs_still_learn():
    """A logarithm of a float32 sigmoid gives these a constant loss without gradient."""
    logits = torch.tensor([-20.0, 20.0], requires_grad=True)
    loss = ape_loss(logits, torch.tensor([1, 0]), torch.ones(1), weight_by_iou=False)
    assert math.isclose(loss, 40 / 1.5, rel_tol=1e-6)  # balance: sigmoid(320) + sigmoid(0)
    assert_near(gradient_of(loss, logits), torch.tensor([-1.0, 1.0]) / 1.5)


@pytest.mark.parametrize("ties", (False, True))
@pytest.mark.parametrize("delta", (0.5, 2.0))
def test_rank_sort_follows_the_loop(delta, ties):
    """Oksuz et al. 2021: both errors, distributed by the identity update."""
    logits, labels, ious = batch(ties=ties)
    s, n = logits[labels == 1], logits[labels == 0]
    ranking_on_negatives = torch.zeros_like(n)
    ranking_on_positives, sorting_on_positives = torch.zeros_like(s), torch.zeros_like(s)
    ranking, sorting = [], []
    for u in range(len(s)):
        positives, negatives = step(s - s[u], delta), step(n - s[u], delta)
        rank = positives.sum() + negatives.sum()
        ranking.append(negatives.sum() / rank)
        if negatives.sum() > 0:
            ranking_on_positives[u] -= ranking[-1]
            ranking_on_negatives += ranking[-1] * negatives / negatives.sum()
        target = positives * (ious >= ious[u])
        error = (positives * (1 - ious)).sum() / positives.sum()
        error = error - (target * (1 - ious)).sum() / target.sum()
        sorting.append(error)
        missorted = positives * (ious < ious[u])
        if missorted.sum() > 0:
            sorting_on_positives[u] -= error
            sorting_on_positives += error * missorted / missorted.sum()
    targets = labels.double().masked_scatter(labels == 1, ious)
    logits.requires_grad_()
    actual_ranking, actual_sorting = rank_sort_loss(logits, targets, delta)
    assert_near(actual_ranking.detach(), torch.stack(ranking).mean())
    assert_near(actual_sorting.detach(), torch.stack(sorting).mean())
    gradient = gradient_of(actual_ranking, logits)
    assert_near(gradient[labels == 1], ranking_on_positives / len(s))
    assert_near(gradient[labels == 0], ranking_on_negatives / len(s))
    gradient = gradient_of(actual_sorting, logits)
    assert_near(gradient[labels == 1], sorting_on_positives / len(s))
    assert gradient[labels != 1].eq(0).all()
    # What pulls up equals what pulls down.
    assert abs(gradient.sum()) < 1e-12 and abs(gradient_of(actual_ranking, logits).sum()) < 1e-12


def test_sorted_positives_have_no_sorting_error():
    logits = torch.tensor([3.0, 1.0, -1.0, -9.0], requires_grad=True)
    targets = torch.tensor([0.9, 0.5, 0.2, 0.0])
    ranking, sorting = rank_sort_loss(logits, targets)
    assert ranking == 0 and abs(sorting) < 1e-7
    ranking, sorting = rank_sort_loss(logits, targets.flip(0).roll(-1))
    assert ranking == 0 and sorting > 0.1


@pytest.mark.parametrize("delta", (1.0, 0.25))
def test_alrp_follows_the_loop(delta):
    """Oksuz et al. 2020: the error of each positive spread over its false positives."""
    logits, labels, losses = batch()
    s, n = logits[labels == 1], logits[labels == 0]
    on_positives, on_negatives = torch.zeros_like(s), torch.zeros_like(n)
    precisions, ranks = torch.zeros_like(s), torch.zeros_like(s)
    for u in range(len(s)):
        others = step(s - s[u], delta)
        others[u] = 0.0
        negatives = step(n - s[u], delta)
        ranks[u] = 1 + others.sum() + negatives.sum()
        precisions[u] = (1 + others.sum()) / ranks[u]
        if negatives.sum() > 0:
            on_positives[u] = -((others * losses).sum() + negatives.sum()) / ranks[u]
            on_negatives += negatives * -on_positives[u] / negatives.sum()
    leaf = losses.clone().requires_grad_()
    order = s.argsort(descending=True)
    expected = (leaf[order].cumsum(0) / ranks[order]).mean()
    logits.requires_grad_(), losses.requires_grad_()
    classification, localization = alrp_loss(logits, labels, losses, delta)
    assert_near(classification.detach(), 1 - precisions.mean())
    assert_near(localization.detach(), expected.detach())
    gradient = gradient_of(classification, logits)
    assert_near(gradient[labels == 1], on_positives / len(s))
    assert_near(gradient[labels == 0], on_negatives / len(s))
    assert_near(gradient_of(localization, losses), gradient_of(expected, leaf))


@pytest.mark.parametrize("positives, negatives", [(0, 5), (1, 0), (1, 1), (4, 0), (3, 9)])
def test_edge_cases(positives, negatives):
    for same in (False, True):
        logits, labels, ious = batch(positives, negatives)
        logits = (logits * 0 if same else logits).float().requires_grad_()
        targets = labels.double().masked_scatter(labels == 1, ious)
        losses = [
            ap_loss(logits, labels),
            *(pairwise_error_loss(logits, labels, d) for d in ("step", "sigmoid", "cross_entropy")),
            ape_loss(logits, labels, ious),
            *rank_sort_loss(logits, targets),
            alrp_loss(logits, labels, ious)[0],
        ]
        for loss in losses:
            gradient = gradient_of(loss, logits)
            assert loss.isfinite() and gradient.isfinite().all()
            if positives == 0 or (negatives == 0 and loss is losses[0]):
                assert loss == 0 and gradient.eq(0).all()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x, y: pairwise_error_loss(x, y, "hinge"),
            ValueError,
            "distance: unknown name 'hinge'",
        ),
        (
            lambda x, y: pairwise_error_loss(x, y, balance="N"),
            ValueError,
            "balance: unknown name 'N'",
        ),
        (lambda x, y: ape_loss(x, y, x[:1], lam=0), ValueError, "lam must be > 0, got 0"),
        (lambda x, y: ape_loss(x, y, x[:1], lam="8"), TypeError, "lam must be .*> 0, got '8'"),
        (lambda x, y: ape_loss(x, y, x[:2]), ValueError, "one value per positive, 1, got 2"),
        (lambda x, y: ap_loss(x, y, delta=-1), ValueError, "delta must be > 0"),
        (lambda x, y: rank_sort_loss(x, y * 3.0), ValueError, "targets must be -1 or in"),
        (lambda x, y: alrp_loss(x, y, x), ValueError, "localization must have one value per"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3), torch.tensor([1, 0, -1]))
