"""Association, Harmonic and IoU-balanced losses against plain loops and their papers' gradients."""

import math

import pytest
import torch

from corrdet.losses import (
    association_loss,
    harmonic_factors,
    harmonic_iou_loss,
    harmonic_loss,
    iou_balanced_smooth_l1_loss,
    iou_balanced_weights,
    sigmoid_focal_loss,
    task_contrastive_loss,
)


def uniform(*shape, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low


class TestAssociation:
    @pytest.mark.parametrize("beta, k", [(1.0, 1.0), (0.25, 0.8), (1.25, 1.5)])
    def test_is_the_formula(self, beta, k):
        scores, ious = uniform(50), uniform(50, seed=1, high=0.6)
        pse = association_loss(scores, ious, "pse", beta, k)
        pce = association_loss(scores, ious, "pce", beta, k)
        for p, i, squared, entropy in zip(scores, ious, pse, pce, strict=True):
            assert math.isclose(squared, beta * (p - k * i) ** 2)
            assert math.isclose(entropy, -beta * math.log(1 - abs(p - k * i)))

    @pytest.mark.parametrize("alpha, beta, k", [(1.0, 1.0, 1.0), (0.25, 1.25, 0.8)])
    def test_gradient_is_equation_11(self, alpha, beta, k):
        """With gamma = 0; the sign of the two last terms as the derivative has it."""
        logits = uniform(40, low=-4, high=4).requires_grad_()
        ious = uniform(40, seed=1)
        p = logits.sigmoid()
        focal = sigmoid_focal_loss(logits, torch.ones(40).double(), alpha=alpha, gamma=0)
        total = focal + association_loss(p, ious, "pse", beta, k)
        (gradient,) = torch.autograd.grad(total.sum(), logits)
        expected = (p - 1) * (alpha - 2 * beta * p**2 + 2 * beta * k * ious * p)
        torch.testing.assert_close(gradient, expected)

    def test_ious_get_no_gradient(self):
        scores, ious = uniform(5).requires_grad_(), uniform(5, seed=1).requires_grad_()
        for kind in ("pse", "pce"):
            loss = association_loss(scores, ious, kind).sum()
            assert torch.autograd.grad(loss, (scores, ious), allow_unused=True)[1] is None

    def test_pce_beyond_its_domain_is_finite(self):
        scores = torch.tensor([0.0, 1.0, 0.1], requires_grad=True)
        loss = association_loss(scores, torch.tensor([1.0, 0.0, 0.9]), "pce", k=1.5)
        assert loss.tolist() == pytest.approx([-math.log(1e-6)] * 3, rel=1e-4)
        (gradient,) = torch.autograd.grad(loss.sum(), scores)
        assert gradient.tolist() == [0, 0, 0]

    def test_gradcheck(self):
        scores, ious = uniform(20).requires_grad_(), uniform(20, seed=1)
        for kind in ("pse", "pce"):
            assert torch.autograd.gradcheck(lambda p, k=kind: association_loss(p, ious, k), scores)

    def test_bad_input(self):
        values = uniform(3)
        with pytest.raises(ValueError, match="kind: unknown name 'psee'.*'pse'"):
            association_loss(values, values, "psee")
        with pytest.raises(ValueError, match=r"same shape, got \(3,\) and \(2,\)"):
            association_loss(values, values[:2])
        with pytest.raises(ValueError, match=r"must have shape \(P,\), got \(1, 3\)"):
            association_loss(values[None], values[None])
        with pytest.raises(TypeError, match="floating-point.*int64"):
            association_loss(values.long(), values)
        for name in ("beta", "k"):
            with pytest.raises(ValueError, match=f"{name} must be >= 0"):
                association_loss(values, values, **{name: -1.0})


class TestHarmonic:
    def test_is_the_formula(self):
        entropy, localization = uniform(30, high=5), uniform(30, seed=1, high=5)
        loss = harmonic_loss(entropy, localization)
        for c, x, value in zip(entropy, localization, loss, strict=True):
            assert math.isclose(value, (1 + math.exp(-x)) * c + (1 + math.exp(-c)) * x)

    def test_gradient_is_equation_7(self):
        p = uniform(30, low=0.01).requires_grad_()
        localization = uniform(30, seed=1, high=3)
        loss = harmonic_loss(-p.log(), localization)
        (gradient,) = torch.autograd.grad(loss.sum(), p)
        torch.testing.assert_close(gradient, localization - (1 + torch.exp(-localization)) / p)

    def test_stopped_factors_weigh_only(self):
        entropy = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
        localization = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
        gradients = {}
        for stopped in (False, True):
            factors = harmonic_factors(entropy, localization, stopped)
            loss = (factors[0] * entropy + factors[1] * localization).sum()
            gradients[stopped] = torch.autograd.grad(loss, (entropy, localization))
            assert loss.item() == harmonic_loss(entropy, localization).sum().item()
        torch.testing.assert_close(gradients[True][0], 1 + torch.exp(-localization))
        torch.testing.assert_close(gradients[True][1], 1 + torch.exp(-entropy))
        # Badly classified, well localized: the paper's loss wants the box to be worse.
        assert gradients[False][1][0] < 0 < gradients[False][1][1]

    def test_gradcheck_in_both(self):
        values = (uniform(10, high=4).requires_grad_(), uniform(10, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(harmonic_loss, values)

    def test_large_losses_are_finite(self):
        values = torch.tensor([0.0, 1e4, 1e30], requires_grad=True)
        loss = harmonic_loss(values, values.flip(0))
        loss.sum().backward()
        assert loss.isfinite().all() and values.grad.isfinite().all()


class TestTaskContrastive:
    def test_is_the_formula(self):
        probabilities = uniform(20, 5, seed=2, low=-2, high=2).softmax(dim=1)
        labels, ious = torch.arange(20) % 5, uniform(20, seed=3)
        loss = task_contrastive_loss(probabilities, labels, ious, margin=0.1)
        assert (loss == 0).any() and (loss > 0).any()
        for row, label, i, value in zip(probabilities, labels, ious, loss, strict=True):
            entropy = -sum(p * math.log(p) for p in row.tolist())
            gap = max(0.0, abs(row[label] - i) - 0.1)
            assert math.isclose(value, gap / (1 + math.exp(entropy)), rel_tol=1e-9)

    def test_gradient_reaches_the_probabilities_only(self):
        logits = uniform(8, 4, low=-3, high=3).requires_grad_()
        labels, ious = torch.arange(8) % 4, uniform(8, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: task_contrastive_loss(x.softmax(dim=1), labels, ious), logits
        )
        loss = task_contrastive_loss(logits.sigmoid(), labels, ious).sum()
        assert torch.autograd.grad(loss, ious, allow_unused=True)[0] is None

    def test_probabilities_of_zero_and_many_classes(self):
        logits = torch.full((2, 1000), -1e4)
        logits[1] = -0.5  # an entropy above 300
        logits.requires_grad_()
        loss = task_contrastive_loss(logits.sigmoid(), torch.zeros(2).long(), torch.ones(2))
        loss.sum().backward()
        assert loss.tolist() == pytest.approx([0.8 / 2, 0])
        assert logits.grad.isfinite().all()

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
            task_contrastive_loss(uniform(3, 2), torch.zeros(2).long(), uniform(3))
        with pytest.raises(ValueError, match=r"probabilities must have shape \(P, C\)"):
            task_contrastive_loss(uniform(3), torch.zeros(3).long(), uniform(3))
        with pytest.raises(ValueError, match="margin must be >= 0, got -0.1"):
            task_contrastive_loss(uniform(3, 2), torch.zeros(3).long(), uniform(3), -0.1)


class TestHarmonicIou:
    def test_is_the_formula(self):
        ious = uniform(20).requires_grad_()
        loss = harmonic_iou_loss(ious, 0.8)
        for i, value in zip(ious.tolist(), loss.tolist(), strict=True):
            assert math.isclose(value, (1 + i) ** 0.8 * (1 - i))
        assert torch.autograd.gradcheck(harmonic_iou_loss, ious)

    def test_gamma_above_one_is_refused(self):
        with pytest.raises(ValueError, match="gamma must be <= 1, got 1.5"):
            harmonic_iou_loss(uniform(3), gamma=1.5)


class TestIouBalanced:
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.5, 2.0])
    def test_weights_are_equation_2(self, eta):
        losses, ious = uniform(30, high=4), uniform(30, seed=1)
        weights = iou_balanced_weights(losses, ious, eta)
        total = sum(losses.tolist())
        weighted = sum(
            i**eta * loss for i, loss in zip(ious.tolist(), losses.tolist(), strict=True)
        )
        for i, weight in zip(ious, weights, strict=True):
            assert math.isclose(weight, i**eta * total / weighted, rel_tol=1e-9)
        torch.testing.assert_close((weights * losses).sum(), losses.sum())

    @pytest.mark.parametrize("eta, size", [(10, 1e-4), (1.5, 1e-26), (3, 1e-12)])
    def test_weights_of_small_ious_keep_the_sum(self, eta, size):
        # Their powers are denormal, and what the sum is divided by overflows.
        losses, ious = torch.tensor([1.0, 2.0, 3.0]), size * torch.tensor([0.2, 0.0, 1.0])
        weights = iou_balanced_weights(losses, ious, eta)
        assert weights.isfinite().all()
        torch.testing.assert_close((weights * losses).sum(), losses.sum())
        assert weights[0] < weights[2]

    def test_weights_are_constants(self):
        losses, ious = uniform(5).requires_grad_(), uniform(5, seed=1).requires_grad_()
        assert not iou_balanced_weights(losses, ious).requires_grad

    def test_nothing_to_balance(self):
        losses = uniform(3)
        assert iou_balanced_weights(losses, torch.zeros(3).double()).tolist() == [1, 1, 1]
        assert iou_balanced_weights(losses[:0], losses[:0]).shape == (0,)
        assert iou_balanced_weights(losses, torch.tensor([0.5, math.nan, 1])).isnan().all()

    @pytest.mark.parametrize("lam, weight", [(0.0, 1.0), (1.5, 3.049), (0.7, None)])
    def test_localization_is_equations_3_to_5(self, lam, weight):
        pred, target, ious = uniform(20, 4), uniform(20, 4, seed=1), uniform(20, seed=2)
        loss = iou_balanced_smooth_l1_loss(pred, target, ious, lam, weight, delta=0.111)
        plain = []
        for d in (pred - target).abs():
            plain.append(
                sum(
                    x**2 / 2 / 0.111 if x < 0.111 else x - 0.111 / 2
                    for x in d.tolist()
                )
            )  # fmt: skip
        factors = [i**lam for i in ious.tolist()]
        scale = weight
        if weight is None:
            scale = sum(plain) / sum(f * x for f, x in zip(factors, plain, strict=True))
        expected = [scale * f * x for f, x in zip(factors, plain, strict=True)]
        assert loss.tolist() == pytest.approx(expected, rel=1e-9)

    def test_gradient_is_equation_6(self):
        target, ious = uniform(20, 4, seed=1), uniform(20, seed=2).requires_grad_()
        pred = (target + uniform(20, 4, low=-0.3, high=0.3)).requires_grad_()
        loss = iou_balanced_smooth_l1_loss(pred, target, ious).sum()
        gradient, ious_gradient = torch.autograd.grad(loss, (pred, ious), allow_unused=True)
        d = (pred - target).detach()
        plain = torch.where(d.abs() <= 0.111, d / 0.111, d.sign())
        torch.testing.assert_close(gradient, 3.049 * (ious**1.5)[:, None] * plain)
        assert ious_gradient is None

    def test_bad_input(self):
        boxes, ious = uniform(3, 4), uniform(3)
        with pytest.raises(ValueError, match=r"pred must have shape \(P, 4\), got \(3, 5\)"):
            iou_balanced_smooth_l1_loss(uniform(3, 5), uniform(3, 5), ious)
        with pytest.raises(ValueError, match="lam must be >= 0, got -1"):
            iou_balanced_smooth_l1_loss(boxes, boxes, ious, lam=-1.0)
        with pytest.raises(ValueError, match="weight must be > 0, or None, got 0"):
            iou_balanced_smooth_l1_loss(boxes, boxes, ious, weight=0.0)
        with pytest.raises(ValueError, match="eta must be >= 0"):
            iou_balanced_weights(ious, ious, eta=-0.1)
        with pytest.raises(ValueError, match="same shape"):
            iou_balanced_smooth_l1_loss(boxes, boxes, uniform(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    scores, ious = uniform(10).to(dtype), uniform(10, seed=1).to(dtype)
    boxes = uniform(10, 4).to(dtype)
    losses = [
        association_loss(scores, ious),
        association_loss(scores, ious, "pce"),
        harmonic_loss(scores, ious),
        harmonic_iou_loss(ious),
        task_contrastive_loss(scores[:, None], torch.zeros(10).long(), ious),
        iou_balanced_weights(scores, ious),
        iou_balanced_smooth_l1_loss(boxes, boxes + 1, ious),
    ]
    wide = scores.float(), ious.float()
    expected = [association_loss(*wide), association_loss(*wide, "pce"), harmonic_loss(*wide)]
    assert {loss.dtype for loss in losses} == {torch.float32}
    for loss, value in zip(losses, expected, strict=False):
        torch.testing.assert_close(loss, value)


def test_empty():
    none = torch.zeros(0, requires_grad=True)
    losses = [
        association_loss(none, none.detach()),
        harmonic_loss(none, none),
        harmonic_iou_loss(none),
        task_contrastive_loss(none.reshape(0, 3), torch.zeros(0).long(), none),
    ]
    for loss in losses:
        assert loss.shape == (0,) and loss.requires_grad
