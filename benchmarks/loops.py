"""Ranking losses as public implementations compute them: in PyTorch, one positive after the other.

They are what the kernels are timed against. Written from the definitions in :mod:`corrdet.losses`;
each selects the negatives that any positive can see once, and accumulates the gradient on the way.
Arguments are those of the functions of the same names there; each returns the loss, the sum of its
parts where there are two, and its gradient with respect to the logits. Computed in the dtype of the
logits, on their device.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Samples:
    """Positives, the negatives that are not too far below all of them, and their gradients."""

    def __init__(self, logits: Tensor, targets: Tensor, delta: float):
        self.logits = logits
        self.at_positives = (targets > 0).nonzero()[:, 0]
        self.positives = logits[self.at_positives]
        relevant = (targets == 0) & (logits >= self.positives.min() - delta)
        self.at_negatives = relevant.nonzero()[:, 0]
        self.negatives = logits[self.at_negatives]
        self.on_positives = torch.zeros_like(self.positives)
        self.on_negatives = torch.zeros_like(self.negatives)

    def gradient(self) -> Tensor:
        """The gradient accumulated, over the number of positives."""
        gradient = torch.zeros_like(self.logits)
        gradient[self.at_positives] = self.on_positives
        gradient[self.at_negatives] = self.on_negatives
        return gradient.div_(len(self.positives))


def step(difference: Tensor, delta: float) -> Tensor:
    """H(x)."""
    return torch.clamp(difference / (2 * delta) + 0.5, min=0, max=1)


def ap_loss(logits: Tensor, labels: Tensor, delta: float = 1.0) -> tuple[Tensor, Tensor]:
    samples = Samples(logits, labels, delta)
    interpolated = torch.empty_like(samples.positives)
    highest = logits.new_zeros(())
    for u in samples.positives.argsort():
        among = step(samples.positives - samples.positives[u], delta)
        over = step(samples.negatives - samples.positives[u], delta)
        true_positives = among.sum() + 0.5  # itself by 1, not by H(0)
        rank = true_positives + over.sum()
        precision = true_positives / rank
        update = over / rank
        if precision >= highest:
            highest = precision
        else:
            update *= (1 - highest) / (1 - precision)
        interpolated[u] = highest
        samples.on_negatives += update
        samples.on_positives[u] = -update.sum()
    return 1 - interpolated.mean(), samples.gradient()


def rank_sort_loss(logits: Tensor, targets: Tensor, delta: float = 0.5) -> tuple[Tensor, Tensor]:
    samples = Samples(logits, targets, delta)
    ious = targets[samples.at_positives].to(logits.dtype)
    errors = torch.empty_like(samples.positives)
    for u in range(len(ious)):
        among = step(samples.positives - samples.positives[u], delta)
        over = step(samples.negatives - samples.positives[u], delta)
        true_positives, false_positives = among.sum(), over.sum()
        rank = true_positives + false_positives
        at_least = (ious >= ious[u]) * among
        current = (among * (1 - ious)).sum() / true_positives
        sorting = current - (at_least * (1 - ious)).sum() / at_least.sum()
        errors[u] = false_positives / rank + sorting
        if false_positives > 0:
            samples.on_positives[u] -= false_positives / rank
            samples.on_negatives += over / rank
        missorted = among - at_least
        total = missorted.sum()
        if total > 0:
            samples.on_positives[u] -= sorting
            samples.on_positives += missorted * (sorting / total)
    return errors.mean(), samples.gradient()


def alrp_loss(
    logits: Tensor, labels: Tensor, localization: Tensor, delta: float = 1.0
) -> tuple[Tensor, Tensor]:
    samples = Samples(logits, labels, delta)
    precisions = torch.empty_like(samples.positives)
    errors = torch.empty_like(samples.positives)
    for u in samples.positives.argsort():
        among = step(samples.positives - samples.positives[u], delta)
        among[u] = 0
        over = step(samples.negatives - samples.positives[u], delta)
        true_positives, false_positives = 1 + among.sum(), over.sum()
        rank = true_positives + false_positives
        precisions[u] = true_positives / rank
        above = samples.positives >= samples.positives[u]
        errors[u] = (above * localization).sum() / rank
        if false_positives > 0:
            error = (false_positives + (among * localization).sum()) / rank
            samples.on_positives[u] = -error
            samples.on_negatives += over * (error / false_positives)
    return 1 - precisions.mean() + errors.mean(), samples.gradient()


def ape_loss(
    logits: Tensor, labels: Tensor, ious: Tensor, lam: float = 8.0
) -> tuple[Tensor, Tensor]:
    delta = 4 / lam
    samples = Samples(logits, labels, delta)
    ious = ious.to(logits.dtype)
    losses = torch.empty_like(samples.positives)
    for u in range(len(ious)):
        among = samples.positives - samples.positives[u]
        over = samples.negatives - samples.positives[u]
        among_counts, over_counts = among > -delta, over > -delta
        lower = among_counts & (ious < ious[u])
        among, over = among * lam, over * lam
        among_error, over_error = among.sigmoid() * among_counts, over.sigmoid() * over_counts
        share = ious[u] / (among_error.sum() + over_error.sum())
        losses[u] = (softplus(among) * lower).sum() + (softplus(over) * over_counts).sum()
        losses[u] *= share / lam
        among_error = among_error * lower
        samples.on_positives[u] -= share * (among_error.sum() + over_error.sum())
        samples.on_positives += among_error * share
        samples.on_negatives += over_error * share
    return losses.mean(), samples.gradient()


def sigmoid_error_loss(
    logits: Tensor, labels: Tensor, lam: float = 8.0, delta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """:func:`corrdet.losses.pairwise_error_loss` with the distance ``"sigmoid"``."""
    samples = Samples(logits, labels, delta)
    losses = torch.empty_like(samples.positives)
    for u in range(len(samples.positives)):
        among = samples.positives - samples.positives[u]
        over = samples.negatives - samples.positives[u]
        among_counts, over_counts = among > -delta, over > -delta
        among = (among * lam).sigmoid() * among_counts
        over = (over * lam).sigmoid() * over_counts
        error = over.sum()
        rank = among.sum() + 0.5 + error  # itself by 1, not by sigmoid(0)
        losses[u] = error / rank
        samples.on_positives[u] = -error / rank
        samples.on_negatives += over / rank
    return losses.mean(), samples.gradient()
