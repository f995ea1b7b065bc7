"""Losses that the papers compare with: against plain loops over their definitions."""

import math

import pytest
import torch
import torchvision

from corrdet.losses import (
    balanced_l1_loss,
    ciou_loss,
    diou_loss,
    dr_loss,
    ghm_c_loss,
    ghm_r_loss,
    iou_loss,
    quality_focal_loss,
    varifocal_loss,
)

HOSTILE = [0.0, 1e4, -1e4, 50.0, -50.0, 1e-20]


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def samples(count=60):
    """Logits, and IoUs at every third sample."""
    logits = normal(count, scale=2)
    ious = torch.rand(count, generator=torch.Generator().manual_seed(1)).double()
    return logits, torch.where(torch.arange(count) % 3 == 0, ious, 0.0)


def cross_entropy(p, target):
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_quality_focal(beta):
    logits, targets = samples()
    losses = quality_focal_loss(logits, targets, beta)
    for p, y, loss in zip(logits.sigmoid().tolist(), targets.tolist(), losses, strict=True):
        assert math.isclose(loss, abs(y - p) ** beta * cross_entropy(p, y), rel_tol=1e-9)


@pytest.mark.parametrize("alpha, gamma", [(0.75, 2.0), (0.3, 0.5), (1.0, 0.0)])
def test_varifocal(alpha, gamma):
    logits, targets = samples()
    losses = varifocal_loss(logits, targets, alpha, gamma)
    for p, q, loss in zip(logits.sigmoid().tolist(), targets.tolist(), losses, strict=True):
        weight = q if q > 0 else alpha * p**gamma
        assert math.isclose(loss, weight * cross_entropy(p, q), rel_tol=1e-9)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("function", [quality_focal_loss, varifocal_loss])
def test_focal_kind_on_hostile_logits(function, exponent):
    logits = torch.tensor(HOSTILE * 3, requires_grad=True)
    targets = torch.tensor([[0.0] * 6, [0.4] * 6, [1.0] * 6]).flatten()
    option = "beta" if function is quality_focal_loss else "gamma"
    loss = function(logits, targets, **{option: exponent})
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all() and (loss >= 0).all()
    half = function(logits.detach()[3:].half(), targets[3:].half(), **{option: exponent})
    assert half.dtype == torch.float32


def test_gradcheck():
    logits, targets = samples(12)
    logits.requires_grad_()
    pred = normal(6, 4).requires_grad_()
    labels = (targets > 0).long()
    for function in (
        lambda x: quality_focal_loss(x, targets),
        lambda x: varifocal_loss(x, targets),
        lambda x: dr_loss(x, labels),
    ):
        assert torch.autograd.gradcheck(function, logits)
    assert torch.autograd.gradcheck(lambda x: balanced_l1_loss(x, torch.zeros_like(x)), pred)


def ghm_by_loop(norms, losses, bins):
    """The sum of losses over gradient densities."""
    index = [min(int(norm * bins), bins - 1) for norm in norms]
    return sum(
        loss / (index.count(own) * bins) for own, loss in zip(index, losses, strict=True)
    )  # fmt: skip


class PlainGHM:
    """mmdetection's, as its code goes from bin to bin."""

    def __init__(self, bins, momentum):
        self.bins, self.momentum, self.sums = bins, momentum, [0.0] * bins

    def __call__(self, norms, losses):
        index = [min(int(norm * self.bins), self.bins - 1) for norm in norms]
        filled = sorted(set(index))
        for own in filled:
            self.sums[own] *= self.momentum
            self.sums[own] += (1 - self.momentum) * index.count(own)
        weights = [1 / self.sums[own] / len(filled) for own in index]
        return sum(loss * weight for loss, weight in zip(losses, weights, strict=True))


def test_ghm_of_mmdetection():
    """Three batches, in some of which bins are empty."""
    plain_ghm_c, plain_ghm_r = PlainGHM(30, 0.75), PlainGHM(10, 0.7)
    counts = torch.full((30,), -1.0).double()
    box_counts = torch.full((10,), -1.0).double()
    for seed, scale in enumerate((1.0, 0.02, 3.0)):
        logits, targets = samples(60)
        logits, targets = logits * scale + seed, (targets > 0).double()
        pairs = list(zip(logits.sigmoid().tolist(), targets.tolist(), strict=True))
        norms, losses = [abs(p - y) for p, y in pairs], [cross_entropy(p, y) for p, y in pairs]
        loss = ghm_c_loss(logits, targets, 30, 0.75, counts)
        assert math.isclose(loss, plain_ghm_c(norms, losses), rel_tol=1e-9)
        pred, target = normal(20, 4, seed=seed, scale=0.05 * scale), normal(20, 4, scale=0.05)
        differences = (pred - target).flatten().tolist()
        roots = [math.sqrt(d * d + 0.02 * 0.02) for d in differences]
        norms = [abs(d / root) for d, root in zip(differences, roots, strict=True)]
        loss = ghm_r_loss(pred, target, 0.02, 10, 0.7, box_counts)
        assert math.isclose(loss, plain_ghm_r(norms, [r - 0.02 for r in roots]), rel_tol=1e-9)
    assert 0 in plain_ghm_c.sums or len(set(plain_ghm_c.sums)) > 5
    torch.testing.assert_close(counts, torch.tensor(plain_ghm_c.sums).double())


@pytest.mark.parametrize(("bins", "scale"), [(1, 1.0), (10, 1.0), (30, 1.0), (30, 0.02)])
def test_ghm_c(bins, scale):
    """The formula's, which divides by all bins: of small logits most are empty."""
    logits, targets = samples(200)
    logits, targets = logits * scale, (targets > 0).double()
    p = logits.sigmoid().tolist()
    norms = [abs(a - b) for a, b in zip(p, targets.tolist(), strict=True)]
    losses = [cross_entropy(a, b) for a, b in zip(p, targets.tolist(), strict=True)]
    expected = ghm_by_loop(norms, losses, bins)
    assert math.isclose(
        ghm_c_loss(logits, targets, bins, variant="formula"), expected, rel_tol=1e-9
    )


@pytest.mark.parametrize(("bins", "scale"), [(1, 0.1), (10, 0.1), (10, 0.005)])
def test_ghm_r(bins, scale):
    pred, target = normal(50, 4, scale=scale), normal(50, 4, seed=1, scale=scale)
    d = (pred - target).flatten().tolist()
    roots = [math.sqrt(x * x + 0.05 * 0.05) for x in d]
    norms = [abs(x / root) for x, root in zip(d, roots, strict=True)]
    expected = ghm_by_loop(norms, [root - 0.05 for root in roots], bins)
    assert math.isclose(ghm_r_loss(pred, target, 0.05, bins, variant="formula"), expected)


def test_ghm_weights_are_constants():
    """The gradient of a logit is that of its cross entropy, over the density."""
    logits, targets = samples(50)
    targets = (targets > 0).double()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(
        ghm_c_loss(logits, targets, bins=5, variant="formula"), logits
    )
    error = logits.sigmoid() - targets
    index = (error.abs() * 5).long()
    density = 5 * torch.bincount(index, minlength=5)[index]
    torch.testing.assert_close(gradient, error.detach() / density)


def test_ghm_running_counts():
    logits, targets = samples(40)
    targets = (targets > 0).double()
    counts = torch.full((6,), -1.0, dtype=torch.float64)
    first = ghm_c_loss(logits, targets, 6, 0.75, counts, "formula")
    assert math.isclose(
        first, ghm_c_loss(logits, targets, 6, variant="formula")
    )  # nothing to remember yet
    now = counts.clone()
    assert now.sum() == 40
    ghm_c_loss(logits * 0, targets, 6, 0.75, counts, "formula")  # all norms are 1/2: bin 3
    expected = 0.75 * now
    expected[3] += 0.25 * 40
    torch.testing.assert_close(counts, expected)


def test_ghm_edge_cases():
    assert ghm_c_loss(torch.zeros(0, requires_grad=True), torch.zeros(0)).item() == 0
    assert ghm_r_loss(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4)).item() == 0
    logits = torch.tensor(HOSTILE, requires_grad=True)
    loss = ghm_c_loss(logits, torch.tensor([0.0, 1, 0, 1, 0, 1]))
    pred = torch.tensor([[1e30, -1e30, 0, 1e-30]], requires_grad=True)
    (loss + ghm_r_loss(pred, torch.zeros(1, 4))).backward()
    assert logits.grad.isfinite().all() and pred.grad.isfinite().all()
    assert ghm_c_loss(torch.tensor([math.nan, 0]), torch.zeros(2)).isnan()
    with pytest.raises(ValueError, match=r"counts must have shape \(30,\), got \(4,\)"):
        ghm_c_loss(logits, logits, counts=torch.zeros(4))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        ghm_c_loss(logits, logits, momentum=1.0)
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        ghm_c_loss(logits, logits, bins=0)
    with pytest.raises(ValueError, match="mu must be > 0, got 0"):
        ghm_r_loss(pred, pred, mu=0)


def dr_by_loop(positives, negatives, margin=0.5, smoothness=6.0, lam_pos=1.0, lam_neg=0.0798):
    def mean(scores, temperature, otherwise):
        weights = [math.exp(score / temperature) for score in scores]
        if not weights:
            return otherwise
        weighted = sum(w * s for w, s in zip(weights, scores, strict=True))
        return weighted / sum(weights)

    gap = mean(negatives, lam_neg, 0.0) - mean(positives, -lam_pos, 1.0) + margin
    return math.log(1 + math.exp(smoothness * gap)) / smoothness


def test_dr():
    logits, targets = samples()
    labels = (targets > 0).long()
    labels[::7] = -1
    scores = logits.sigmoid()
    cases = [
        labels,
        torch.where(labels == 0, -1, labels),
        torch.where(labels == 1, -1, labels),
        torch.full_like(labels, -1),
    ]
    for case in cases:
        positives, negatives = scores[case == 1].tolist(), scores[case == 0].tolist()
        assert math.isclose(dr_loss(logits, case), dr_by_loop(positives, negatives))
    options = {"margin": 0.2, "smoothness": 3.0, "lam_pos": 0.5, "lam_neg": 0.3}
    expected = dr_by_loop(scores[labels == 1].tolist(), scores[labels == 0].tolist(), **options)
    assert math.isclose(dr_loss(logits, labels, **options), expected)


def test_dr_edge_cases():
    for labels in ([1, 0, 1, 0, 1, 0], [1] * 6, [0] * 6, [-1] * 6):
        logits = torch.tensor(HOSTILE, requires_grad=True)
        loss = dr_loss(logits, torch.tensor(labels), lam_neg=1e-3)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()
    assert dr_loss(torch.tensor([math.nan, 0]), torch.tensor([1, 0])).isnan()
    assert dr_loss(torch.tensor([math.nan, 0]), torch.tensor([0, 1])).isnan()
    for infinite in (math.inf, -math.inf):
        for labels, undefined in (([1, 0], True), ([0, 1], True), ([-1, 1], False)):
            logits = torch.tensor([infinite, 0.3], requires_grad=True)
            loss = dr_loss(logits, torch.tensor(labels))
            assert loss.isnan() == undefined
            assert torch.autograd.grad(loss, logits)[0].isnan().any() == undefined
    with pytest.raises(ValueError, match=r"shape of logits, \(2,\), got \(3,\)"):
        dr_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="lam_neg must be > 0, got 0"):
        dr_loss(torch.zeros(2), torch.zeros(2), lam_neg=0)


@pytest.mark.parametrize("alpha, gamma", [(0.5, 1.5), (0.3, 1.0)])
def test_balanced_l1(alpha, gamma):
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    losses = balanced_l1_loss(x, torch.zeros_like(x), alpha, gamma)
    b = math.exp(gamma / alpha) - 1
    for value, loss in zip(x.tolist(), losses.tolist(), strict=True):
        d = abs(value)
        if d < 1:
            expected = alpha / b * (b * d + 1) * math.log(b * d + 1) - alpha * d
        else:
            expected = gamma * d + gamma / b - alpha
        assert math.isclose(loss, expected, rel_tol=1e-9, abs_tol=1e-12)
    # Its promoted gradient.
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    inner = alpha * torch.log1p(b * x.abs()).detach()
    expected = torch.where(x.abs() < 1, inner, gamma) * x.detach().sign()
    inside = (x.detach().abs() - 1).abs() > 1e-6
    torch.testing.assert_close(gradient[inside], expected[inside])
    with pytest.raises(ValueError, match="alpha must be > 0, got 0"):
        balanced_l1_loss(x, x, alpha=0)


def boxes(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 4, generator=generator, dtype=torch.float64) * 50
    corners[..., 2:] += corners[..., :2]
    return corners[:, 0].requires_grad_(), corners[:, 1]


def test_iou_loss():
    pred, target = boxes()
    ious = torchvision.ops.box_iou(pred, target).diagonal()
    expected = torch.where(ious > 0, -ious.clamp(min=1e-6).log(), -math.log(1e-6))
    losses = iou_loss(pred, target)
    torch.testing.assert_close(losses, expected)
    apart = ious == 0
    assert apart.any() and not apart.all()
    (gradient,) = torch.autograd.grad(losses.sum(), pred)
    assert (gradient[apart] == 0).all() and (gradient[~apart] != 0).any(dim=1).all()


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (diou_loss, torchvision.ops.distance_box_iou_loss),
        (ciou_loss, torchvision.ops.complete_box_iou_loss),
    ],
)
def test_diou_and_ciou_are_torchvisions(ours, theirs):
    pred, target = boxes(seed=3)
    a, b = ours(pred, target), theirs(pred, target)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss.sum(), pred)[0] for loss in (a, b)), rtol=1e-4, atol=1e-6
    )
