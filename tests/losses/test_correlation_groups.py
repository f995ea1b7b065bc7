"""Correlations of each image or level, as the thesis' code takes them, from the formulas."""

import logging
import math

import numpy as np
import pytest
import torch

from corrdet.losses import (
    Criterion,
    concordance_correlation,
    correlation_loss,
    grouped_correlation_loss,
)
from tests.helpers.losses import build, config, matched_predictions


def plain_soft_ranks(values, strength):
    """Blondel et al. 2020: values / strength minus the isotonic regression, by pooling."""
    order = np.argsort(values, kind="stable")
    scaled = values[order] / strength
    blocks = []  # of sum and length
    for position, value in enumerate(scaled, 1):
        blocks.append([value - position, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, length = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += length
    regression = np.concatenate([np.full(length, total / length) for total, length in blocks])
    ranks = np.empty(len(values))
    ranks[order] = scaled - regression
    return ranks


def plain_ranks(values):
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def plain_loss(scores, ious, coefficient, strength=None, unbiased=False, soft_both=False):
    """1 - rho of one group; 0 where it is not defined."""
    n = len(scores)
    if n < 2 or scores.min() == scores.max() or ious.min() == ious.max():
        return 0.0
    x, y = scores, ious
    if coefficient == "spearman":
        default = [math.sqrt(3) * np.sqrt(((v - v.mean()) ** 2).mean()) / n for v in (x, y)]
        y = plain_soft_ranks(y, strength or default[1]) if soft_both else plain_ranks(y)
        x = plain_soft_ranks(x, strength or default[0])
    dx, dy = x - x.mean(), y - y.mean()
    if coefficient == "concordance":
        d = n - unbiased
        bottom = (dx**2).sum() / d + (dy**2).sum() / d + (x.mean() - y.mean()) ** 2
        return 1 - 2 * (dx * dy).sum() / d / bottom
    return 1 - (dx * dy).sum() / math.sqrt((dx**2).sum() * (dy**2).sum())


def grouped(seed=0, n=60, num_groups=7):
    """Scores, IoUs and groups: 2 is empty, 3 has one positive, 4 has the same score throughout."""
    generator = torch.Generator().manual_seed(seed)
    ious = torch.rand(n, generator=generator, dtype=torch.float64)
    scores = (0.5 * ious + 0.5 * torch.rand(n, generator=generator, dtype=torch.float64)).clone()
    groups = torch.tensor([0, 1, 4, 5, 6])[torch.randint(0, 5, (n,), generator=generator)]
    groups[10] = 3
    scores[groups == 4] = 0.5
    ious[20:24] = 0.25  # ties
    return scores.requires_grad_(), ious, groups, num_groups


OPTIONS = [
    {"coefficient": "pearson"},
    {"coefficient": "concordance"},
    {"coefficient": "concordance", "unbiased": True},
    {"coefficient": "spearman"},
    {"coefficient": "spearman", "strength": 0.02},
    {"coefficient": "spearman", "strength": 1.0, "soft_both": True},
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_groups_are_those_of_plain_loops(options, reduction):
    scores, ious, groups, num_groups = grouped()
    losses = [
        plain_loss(
            scores[groups == g].detach().numpy(), ious[groups == g].numpy(), **options
        )
        for g in range(num_groups)
    ]  # fmt: skip
    # The mean is over groups of two or more: 0, 1, 4, 5 and 6.
    expected = sum(losses) / (5 if reduction == "mean" else 1)
    loss = grouped_correlation_loss(
        scores, ious, groups, num_groups, **options, reduction=reduction
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert (gradient[(groups == 3) | (groups == 4)] == 0).all()
    assert gradient.isfinite().all() and (gradient[groups == 0] != 0).any()


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_gradients(options):
    scores, ious, groups, num_groups = grouped(n=24)
    scores = scores.detach() + torch.linspace(0, 1e-3, 24)  # none is constant
    ious.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: grouped_correlation_loss(
            x, y, groups, num_groups, **options, gradient="both"
        ),
        (scores.requires_grad_(), ious),
    )  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_group_is_the_batch(options):
    scores, ious, *_ = grouped()
    groups = torch.zeros(60, dtype=torch.int64)
    loss = grouped_correlation_loss(scores, ious, groups, 3, **options)
    expected = correlation_loss(scores, ious, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, scores), torch.autograd.grad(expected, scores)
    )


def test_the_thesis_code_is_pearson():
    """Both ranked softly at strength 1: affine functions of values in [0, 1]."""
    scores, ious, *_ = grouped(n=300)
    loss = correlation_loss(scores, ious, "spearman", 1.0, soft_both=True)
    expected = plain_loss(scores.detach().numpy(), ious.numpy(), "pearson")
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, scores)
    (pearson_gradient,) = torch.autograd.grad(correlation_loss(scores, ious, "pearson"), scores)
    torch.testing.assert_close(gradient, pearson_gradient, rtol=1e-8, atol=1e-12)
    text = correlation_loss(scores, ious, "spearman").item()
    assert text != pytest.approx(expected, rel=1e-3)


def test_unbiased_concordance():
    # Means 2 and 3; sums of squares 2 and 8, of products 4.
    x, y = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 5])
    assert concordance_correlation(x, y).item() == pytest.approx(2 * 4 / 3 / (10 / 3 + 1))
    assert concordance_correlation(x, y, unbiased=True).item() == pytest.approx(4 / (5 + 1))


def test_nan_and_nothing():
    scores, ious, groups, num_groups = grouped()
    none = grouped_correlation_loss(scores[:0], ious[:0], groups[:0], num_groups)
    assert none.item() == 0 and none.requires_grad
    scores = scores.detach().clone()
    scores[10] = math.nan  # alone in its group
    assert grouped_correlation_loss(scores, ious, groups, num_groups).isnan()
    with pytest.raises(ValueError, match=r"groups must have shape \(60,\), got \(3,\)"):
        grouped_correlation_loss(scores, ious, groups[:3], num_groups)


def predictions_on_levels(**changes):
    fields = {
        "image_ids": torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]),
        "levels": torch.tensor([0, 1, 1, 1, 0, 0, 1, 3]),
    }
    return matched_predictions(8, **fields, **changes)


@pytest.mark.parametrize("counts", [{}, {"num_images": 4, "num_levels": 5}])
@pytest.mark.parametrize(
    "over, reduction, groups",
    [
        ("image", "sum", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("image", "mean", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("level", "mean", [[0, 4, 5], [1, 2, 3, 6]]),
    ],
)
def test_the_coupling(over, reduction, groups, counts):
    matched = predictions_on_levels(**counts)
    options = {"over": over, "reduction": reduction, "unbiased": True}
    criterion = Criterion(
        "sigmoid_focal", "giou", {"correlation": 0.5}, {"correlation": options}
    )  # fmt: skip
    scores, ious = matched.scores.detach().numpy(), matched.ious.detach().numpy()
    losses = [plain_loss(scores[g], ious[g], "concordance", unbiased=True) for g in groups]
    expected = 0.5 * sum(losses) / (len(losses) if reduction == "mean" else 1)
    assert criterion(matched)["loss_correlation"].item() == pytest.approx(expected, rel=1e-5)


def test_levels_with_a_memory():
    """Batches before are of their own levels."""
    options = {"correlation": {"over": "level", "memory": 1}}
    criterion = Criterion("sigmoid_focal", "giou", {"correlation": 1.0}, options)
    first, second = predictions_on_levels(num_levels=5), predictions_on_levels(num_levels=5)
    with torch.no_grad():
        second.logits.mul_(0.5)
    criterion(first)
    scores = torch.cat([second.scores, first.scores]).detach().numpy()
    ious = torch.cat([second.ious, first.ious]).detach().numpy()
    levels = torch.cat([second.levels, first.levels]).numpy()
    losses = [plain_loss(scores[levels == g], ious[levels == g], "concordance") for g in (0, 1, 3)]
    assert criterion(second)["loss_correlation"].item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_memory_of_another_pyramid_is_forgotten(caplog):
    options = {"correlation": {"over": "level", "memory": 3}}
    criteria = [Criterion("sigmoid_focal", "giou", {"correlation": 1.0}, options) for _ in "abc"]
    for _ in range(2):
        criteria[0](predictions_on_levels(num_levels=5))
    state = criteria[0].state_dict()
    small = predictions_on_levels(num_levels=4)
    criteria[1].load_state_dict(state)
    with caplog.at_level(logging.WARNING, "corrdet"):
        continued = [criteria[1](small)["loss_correlation"].item() for _ in range(2)]
    assert caplog.text.count("what MEMORY has kept is not of the 4 feature levels") == 1
    assert continued == [criteria[2](small)["loss_correlation"].item() for _ in range(2)]
    # As many levels go on.
    criteria[2].load_state_dict(state)
    large = predictions_on_levels(num_levels=5)
    assert criteria[2](large)["loss_correlation"] == criteria[0](large)["loss_correlation"]


def test_a_memory_without_a_number_of_levels():
    options = {"correlation": {"over": "level", "memory": 3}}
    criterion = Criterion("sigmoid_focal", "giou", {"correlation": 1.0}, options)
    criterion(predictions_on_levels())
    fewer = matched_predictions(4, levels=torch.tensor([0, 0, 1, 1]))
    assert criterion(fewer)["loss_correlation"].isfinite()


def test_refusals():
    with pytest.raises(ValueError, match="no levels"):
        options = {"correlation": {"over": "level"}}
        Criterion("sigmoid_focal", "giou", ["correlation"], options)(matched_predictions())
    for option in ({"global_batch": True}, {"memory": 2}):
        with pytest.raises(ValueError, match="over 'image' has nothing to do with other processes"):
            Criterion(
                "sigmoid_focal",
                "giou",
                ["correlation"],
                {"correlation": {"over": "image", **option}},
            )
    with pytest.raises(ValueError, match="MODEL.CRITERION.CORRELATION.OVER: .*no levels.*'batch'"):
        build(COUPLINGS=["correlation"], CORRELATION=config_node(OVER="level"))


def config_node(**values):
    node = config().MODEL.CRITERION.CORRELATION
    for key, value in values.items():
        node[key] = value
    return node


@pytest.mark.parametrize("options", [*OPTIONS, {"coefficient": "spearman", "strength": 1e-12}])
@pytest.mark.parametrize("small", ["scores", "ious", "both"])
@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, 1e-30), (torch.float64, 1e-200)], ids=str
)  # fmt: skip
def test_values_whose_squares_vanish(dtype, size, small, options):
    # As the scores of positives that the detector is sure are background.
    generator = torch.Generator().manual_seed(0)
    scores, ious = torch.rand(2, 20, generator=generator, dtype=dtype)
    scores = scores * (size if small != "ious" else 1)
    ious = ious * (size if small != "scores" else 1)
    groups = torch.arange(20) % 3
    scores.requires_grad_()
    loss = grouped_correlation_loss(scores, ious, groups, 3, **options)
    expected = [
        correlation_loss(scores[groups == g].double(), ious[groups == g].double(), **options)
        for g in range(3)
    ]
    torch.testing.assert_close(loss.double(), sum(expected) / 3, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient.isnan().any()


def test_what_is_remembered_without_groups_is_none_of_a_group():
    """Nor the other way round: trainings that go on from each other's weights."""

    def batch(num):
        return matched_predictions(num_positives=num, levels=torch.zeros(num, dtype=torch.int64))

    state = {}
    for over, num in (("level", 4), ("batch", 2), ("batch", 3), ("level", 2), ("batch", 3)):
        options = {"correlation": {"over": over, "memory": 3}}
        criterion = Criterion("sigmoid_focal", "giou", ["correlation"], options)
        criterion.load_state_dict(state)
        assert criterion(batch(num))["loss_correlation"].isfinite()
        state = criterion.state_dict()
        sizes = [len(v) for k, v in state.items() if ".groups." in k]
        scores = [len(v) for k, v in state.items() if ".scores." in k]
        assert sizes == (scores if over == "level" else [])
