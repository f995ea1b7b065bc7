import math

import pytest
import scipy.stats
import torch

from corrdet.losses import (
    concordance_correlation,
    correlation_loss,
    pearson_correlation,
    spearman_correlation,
)
from corrdet.losses.correlation import COEFFICIENTS, average_ranks
from corrdet.ops import soft_rank

FUNCTIONS = {
    "pearson": pearson_correlation,
    "spearman": spearman_correlation,
    "concordance": concordance_correlation,
}


def pairs(n=50, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    ious = torch.rand(n, generator=generator, dtype=dtype)
    scores = (0.6 * ious + 0.4 * torch.rand(n, generator=generator, dtype=dtype)).clamp(0, 1)
    return scores.requires_grad_(), ious


def plain_concordance(x, y):
    """Eq. 2.3 as it is printed, from the coefficient, the deviations and the means."""
    deviations = x.std(correction=0), y.std(correction=0)
    alpha = ((x - x.mean()) * (y - y.mean())).mean() / (deviations[0] * deviations[1])
    bottom = deviations[0] ** 2 + deviations[1] ** 2 + (x.mean() - y.mean()) ** 2
    return 2 * alpha * deviations[0] * deviations[1] / bottom


class TestValues:
    def test_pearson_is_scipys(self):
        x, y = pairs()
        expected = scipy.stats.pearsonr(x.detach(), y)[0]
        assert pearson_correlation(x, y).item() == pytest.approx(expected, rel=1e-12)

    def test_spearman_with_tiny_strength_is_scipys(self):
        x, y = pairs()
        expected = scipy.stats.spearmanr(x.detach(), y)[0]
        assert spearman_correlation(x, y, strength=1e-9).item() == pytest.approx(expected, rel=1e-9)

    def test_spearman_with_large_strength_is_pearson_of_values_and_ranks(self):
        # The regime that a strength of 1 is always in for probabilities.
        x, y = pairs()
        expected = pearson_correlation(x, average_ranks(y)).item()
        assert spearman_correlation(x, y, strength=1.0).item() == pytest.approx(expected, rel=1e-9)
        assert spearman_correlation(x, y).item() != pytest.approx(expected, rel=1e-3)

    def test_default_strength_is_near_exact_and_many_samples_get_gradient(self):
        for seed, n in [(0, 20), (1, 200), (2, 2000)]:
            x, y = pairs(n, seed)
            exact = scipy.stats.spearmanr(x.detach(), y)[0]
            rho = spearman_correlation(x, y)
            (gradient,) = torch.autograd.grad(rho, x)
            assert rho.item() == pytest.approx(exact, abs=0.03)
            assert (gradient != 0).double().mean() > 0.4

    def test_default_strength_does_not_depend_on_scale(self):
        x, y = pairs()
        assert spearman_correlation(x * 1e-4 + 3, y).item() == pytest.approx(
            spearman_correlation(x, y).item(), rel=1e-8
        )

    def test_default_strength_is_a_constant_of_the_documented_size(self):
        x, y = pairs()
        strength = math.sqrt(3) * x.detach().std(correction=0).item() / len(x)
        rho, expected = spearman_correlation(x, y), spearman_correlation(x, y, strength=strength)
        assert rho.item() == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(
            torch.autograd.grad(rho, x)[0], torch.autograd.grad(expected, x)[0]
        )

    def test_concordance_is_equation_2_3(self):
        x, y = pairs()
        expected = plain_concordance(x, y).item()
        assert concordance_correlation(x, y).item() == pytest.approx(expected, rel=1e-12)

    def test_concordance_by_hand(self):
        # Means 2 and 3, variances 2/3 and 8/3, covariance 4/3: 2 * 4/3 / (10/3 + 1).
        x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0])
        assert concordance_correlation(x, y).item() == pytest.approx(8 / 13)

    def test_concordance_of_values_whose_squares_underflow_is_undefined(self):
        x = torch.tensor([0.0, 1e-30], requires_grad=True)
        rho = concordance_correlation(x, x.detach())
        rho.backward()
        assert rho.item() == 0 and x.grad.tolist() == [0, 0]

    def test_only_concordance_asks_for_equality(self):
        _, y = pairs()
        x = 0.5 * y + 0.1
        assert pearson_correlation(x, y).item() == pytest.approx(1)
        assert spearman_correlation(x, y).item() == pytest.approx(1, abs=0.02)
        assert concordance_correlation(x, y).item() < 0.9
        assert concordance_correlation(y, y).item() == pytest.approx(1)

    @pytest.mark.parametrize("function", FUNCTIONS.values())
    @pytest.mark.parametrize("constant", ["x", "y"])
    def test_coefficients_of_a_constant_are_zero_with_zero_gradient(self, function, constant):
        values = {"x": torch.rand(5), "y": torch.rand(5), constant: torch.full((5,), 0.5)}
        values["x"].requires_grad_()
        rho = function(**values)
        rho.backward()
        assert rho.item() == 0
        assert values["x"].grad.tolist() == [0] * 5

    def test_average_ranks_are_scipys(self):
        values = torch.tensor([0.3, 0.1, 0.3, 0.9, 0.1, 0.1], dtype=torch.float64)
        assert average_ranks(values).tolist() == scipy.stats.rankdata(values).tolist()
        assert average_ranks(torch.tensor([1.0, math.nan])).isnan().all()


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
class TestLoss:
    def test_is_one_minus_the_coefficient(self, coefficient):
        scores, ious = pairs()
        loss = correlation_loss(scores, ious, coefficient)
        assert loss.item() == pytest.approx(1 - FUNCTIONS[coefficient](scores, ious).item())

    def test_gradient(self, coefficient):
        # Away from the kinks of the soft ranks: with a strength that pools everything.
        scores, ious = pairs(12)
        assert torch.autograd.gradcheck(
            lambda s: correlation_loss(s, ious, coefficient, strength=10.0), scores
        )

    def test_descent_raises_the_correlation(self, coefficient):
        scores, ious = pairs(100)
        logits = torch.logit(scores.detach(), eps=1e-3).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.05)
        before = scipy.stats.spearmanr(scores.detach(), ious)[0]
        for _ in range(100):
            optimizer.zero_grad()
            correlation_loss(logits.sigmoid(), ious, coefficient).backward()
            optimizer.step()
        after = scipy.stats.spearmanr(logits.detach(), ious)[0]
        assert after > before + 0.05

    def test_no_gradient_reaches_the_ious(self, coefficient):
        scores, ious = pairs()
        ious.requires_grad_()
        correlation_loss(scores, ious, coefficient).backward()
        assert ious.grad is None
        assert scores.grad.abs().sum() > 0

    @pytest.mark.parametrize("gradient", ["ious", "both"])
    def test_the_gradient_can_reach_the_ious(self, coefficient, gradient):
        scores, ious = pairs()
        ious.requires_grad_()
        loss = correlation_loss(scores, ious, coefficient, gradient=gradient)
        loss.backward()
        assert (scores.grad is not None) == (gradient == "both")
        assert ious.grad.abs().sum() > 0
        if coefficient != "spearman":  # of which other values are ranked softly
            expected = correlation_loss(scores, ious, coefficient)
            assert loss.item() == expected.item()
            if gradient == "both":
                (scores_gradient,) = torch.autograd.grad(expected, scores)
                torch.testing.assert_close(scores.grad, scores_gradient)

    @pytest.mark.parametrize("gradient", ["ious", "both"])
    def test_gradient_of_the_ious(self, coefficient, gradient):
        scores, ious = pairs(12)
        ious.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: correlation_loss(scores, x, coefficient, 10.0, gradient), ious
        )

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_undefined_is_zero_also_of_the_ious(self, coefficient, n):
        ious = torch.full((n,), 0.5, requires_grad=True)
        loss = correlation_loss(torch.rand(n), ious, coefficient, gradient="ious")
        loss.backward()
        assert loss.item() == 0 and ious.grad.tolist() == [0] * n

    @pytest.mark.parametrize(
        "scores, ious",
        [
            ([], []),
            ([0.3], [0.5]),
            ([0.3, 0.3, 0.3], [0.1, 0.5, 0.9]),
            ([0.1, 0.5, 0.9], [0.7, 0.7, 0.7]),
            ([0.1] * 7, [0.1] * 7),
            ([0.5] * 4, [0.5] * 4),
        ],
    )
    def test_undefined_is_zero_with_zero_gradient(self, coefficient, scores, ious):
        scores = torch.tensor(scores, requires_grad=True)
        loss = correlation_loss(scores, torch.tensor(ious), coefficient)
        loss.backward()
        assert loss.item() == 0
        assert scores.grad.tolist() == [0] * len(scores)

    @pytest.mark.parametrize("scale", [1e-6, 1e-18, 1e-30])
    def test_tiny_scores_give_finite_gradients(self, coefficient, scale):
        scores = (torch.tensor([1.0, 3.0, 2.0, 5.0]) * scale).requires_grad_()
        loss = correlation_loss(scores, torch.tensor([0.2, 0.4, 0.6, 0.8]), coefficient)
        loss.backward()
        assert loss.isfinite() and scores.grad.isfinite().all()
        if coefficient == "pearson":
            assert loss.item() == pytest.approx(1 - 0.8315218, abs=1e-5)

    def test_saturated_logits_give_finite_gradients(self, coefficient):
        logits = torch.tensor([1e4, -1e4, 40.0, -40.0, 0.0], requires_grad=True)
        loss = correlation_loss(logits.sigmoid(), torch.linspace(0, 1, 5), coefficient)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()

    @pytest.mark.parametrize("where", ["scores", "ious"])
    def test_nan_is_never_hidden(self, coefficient, where):
        inputs = {"scores": torch.tensor([0.1, 0.5, 0.9]), "ious": torch.tensor([0.3, 0.2, 0.8])}
        inputs[where][1] = math.nan
        assert correlation_loss(inputs["scores"], inputs["ious"], coefficient).isnan()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, coefficient, dtype):
        scores, ious = (value.detach().to(dtype) for value in pairs())
        loss = correlation_loss(scores, ious, coefficient)
        assert loss.dtype == torch.float32
        assert loss.item() == correlation_loss(scores.float(), ious.float(), coefficient).item()

    @pytest.mark.slow
    def test_compiles_without_graph_breaks(self, coefficient):
        scores, ious = pairs(dtype=torch.float32)
        compiled = torch.compile(correlation_loss, fullgraph=True, backend="aot_eager")
        assert compiled(scores, ious, coefficient).item() == pytest.approx(
            correlation_loss(scores, ious, coefficient).item(), rel=1e-5
        )


class TestBadInput:
    def test_shapes(self):
        with pytest.raises(ValueError, match=r"same shape \(n,\), got \(3,\) and \(4,\)"):
            correlation_loss(torch.rand(3), torch.rand(4))
        with pytest.raises(ValueError, match=r"got \(3, 1\) and \(3, 1\)"):
            correlation_loss(torch.rand(3, 1), torch.rand(3, 1))

    def test_types(self):
        with pytest.raises(TypeError, match="floating-point tensors, got torch.int64"):
            pearson_correlation(torch.rand(3), torch.arange(3))
        with pytest.raises(TypeError, match="got list"):
            pearson_correlation([1.0, 2.0], torch.rand(2))

    def test_coefficient_and_strength(self):
        with pytest.raises(
            ValueError, match="'kendall'; there are: concordance, pearson, spearman"
        ):
            correlation_loss(torch.rand(3), torch.rand(3), "kendall")
        for strength in (0, -1.0, math.nan):
            for n in (0, 1, 3):
                with pytest.raises(ValueError, match="strength must be .*> 0"):
                    spearman_correlation(torch.rand(n), torch.rand(n), strength=strength)


def test_options_are_checked_whatever_the_coefficient():
    scores, ious = torch.rand(3), torch.rand(3)
    for coefficient in COEFFICIENTS:
        for strength in (0, -3, math.nan, math.inf, "abc"):
            with pytest.raises(ValueError, match=f"strength must be .*> 0.* got {strength!r}"):
                correlation_loss(scores, ious, coefficient, strength=strength)
    with pytest.raises(
        ValueError, match="coefficient: unknown name 'spaerman'; did you mean 'spearman'"
    ):
        correlation_loss(scores, ious, "spaerman")
    with pytest.raises(ValueError, match="gradient: unknown name 'iou'; did you mean 'ious'"):
        correlation_loss(scores, ious, gradient="iou")


def test_spearman_of_both_ranks_both_softly():
    scores, ious = pairs()
    ranks = [soft_rank(values, strength=0.1) for values in (scores, ious)]
    expected = 1 - pearson_correlation(*ranks)
    assert correlation_loss(scores, ious, "spearman", 0.1, "both").item() == expected.item()


def test_ious_that_are_no_tensor_are_a_type_error():
    with pytest.raises(TypeError, match="expected floating-point tensors, got list"):
        correlation_loss(torch.rand(2), [0.1, 0.2])


@pytest.mark.parametrize("gradient", ["scores", "both"])
@pytest.mark.parametrize(
    "options", [{}, {"strength": 1.0}, {"strength": 1.0, "soft_both": True}], ids=str
)
@pytest.mark.parametrize("num, width", [(300, 1e-4), (3000, 1e-3)])
def test_spearman_of_scores_that_hardly_differ(num, width, options, gradient):
    # As at the begin of a training: ranks of hundreds, and differences of a ten-thousandth.
    generator = torch.Generator().manual_seed(0)
    scores = 0.01 + width * torch.rand(num, generator=generator)
    ious = torch.rand(num, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        x = scores.to(dtype).requires_grad_()
        loss = correlation_loss(x, ious.to(dtype), "spearman", gradient=gradient, **options)
        results.append((loss, *torch.autograd.grad(loss, x)))
    (loss, grad), (expected, expected_grad) = results
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)
    difference = (grad.double() - expected_grad).norm() / expected_grad.norm()
    assert difference < 1e-5
