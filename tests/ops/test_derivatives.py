"""Derivatives beyond the first in reverse mode, and torch.func's transforms: right or refused."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from corrdet.losses import correlation_loss
from corrdet.ops import (
    elementwise_iou,
    pairwise_iou,
    reference,
    smooth_error,
    soft_rank,
    step_error,
)
from corrdet.ops._boxes import IOU_KINDS
from tests.helpers.ops import assert_near, random_boxes, samples

# PyTorch loops over the rows of a batch where an operator has no rule for batches.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

SIZE = 13
LABELS, IOUS = samples(4, 9, seed=1, ignored=0)[1:]
BOXES = random_boxes(SIZE, seed=2)
CORNERS = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)

# Functions of (SIZE,) logits or the like, with one value.
RANKINGS = {
    loss: lambda z, loss=loss: sum(
        step_error(z, LABELS, loss, 1.0, IOUS if loss == "alrp" else None)
    )
    for loss in ("average_precision", "step", "step_negatives", "alrp")
} | {
    "rank_sort": lambda z: sum(
        step_error(z, LABELS.double().masked_scatter(LABELS == 1, IOUS), "rank_sort", 1.0)
    ),
    "smooth": lambda z: smooth_error(z, LABELS, "sigmoid", "rank", 8.0, 0.5, IOUS, True),
}
SMOOTH = {
    "soft_rank": lambda z: (soft_rank(z, 0.4).square() * torch.arange(SIZE)).sum(),
    "correlation_loss": lambda z: correlation_loss(z, BOXES[:, 0], "spearman", 0.3),
    "elementwise_iou": lambda z: elementwise_iou(BOXES + z[:, None] * CORNERS, BOXES, "giou")
    .square()
    .sum(),
    "pairwise_iou": lambda z: pairwise_iou(BOXES + z[:, None] * CORNERS, BOXES + 0.3, "diou")
    .square()
    .sum(),
}  # fmt: skip


def gradient(function, z):
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


@pytest.fixture
def inputs():
    """Values, a direction, and a batch of two rows of values."""
    generator = torch.Generator().manual_seed(3)
    z, direction = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    return z, direction, torch.stack([z, 0.7 * direction])


@pytest.mark.parametrize("name", RANKINGS | SMOOTH)
def test_reverse_mode_of_torch_func(name, inputs):
    function = (RANKINGS | SMOOTH)[name]
    z, _, rows = inputs
    assert_near(grad(function)(z), gradient(function, z))
    assert_near(jacrev(function)(z), gradient(function, z))
    assert_near(vmap(function)(rows), torch.stack([function(row) for row in rows]))
    assert_near(vmap(grad(function))(rows), torch.stack([gradient(function, row) for row in rows]))


@pytest.mark.parametrize("name", RANKINGS | SMOOTH)
def test_functional_call(name, inputs):
    function = (RANKINGS | SMOOTH)[name]
    layer = torch.nn.Linear(SIZE, SIZE, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    actual = grad(lambda p: function(functional_call(layer, p, (inputs[0],))))(parameters)
    expected = torch.autograd.grad(function(layer(inputs[0])), list(layer.parameters()))
    for mine, theirs in zip(actual.values(), expected, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("name", SMOOTH)
def test_forward_mode(name, inputs):
    function = SMOOTH[name]
    z, direction, rows = inputs
    expected = gradient(function, z) @ direction
    assert_near(jvp(function, (z,), (direction,))[1], expected)
    assert_near(jacfwd(function)(z), gradient(function, z))
    for leaf in (z, z.clone().requires_grad_()):
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(leaf, direction)))[1]
        assert_near(tangent.detach(), expected)
    tangents = vmap(lambda row: jvp(function, (row,), (direction,))[1])(rows)
    assert_near(tangents, torch.stack([gradient(function, row) @ direction for row in rows]))


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative(name, inputs):
    """Of a gradient penalty, in reverse over reverse and forward over reverse."""
    function = SMOOTH[name]
    z, direction, _ = inputs
    step = 1e-6
    expected = (
        gradient(function, z + step * direction) - gradient(function, z - step * direction)
    ) / (2 * step)
    leaf = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    assert_near(torch.autograd.grad(first @ direction, leaf)[0], expected, 1e-6)
    assert_near(grad(lambda x: grad(function)(x) @ direction)(z), expected, 1e-6)
    assert_near(jvp(grad(function), (z,), (direction,))[1], expected, 1e-6)
    assert_near(hessian(function)(z) @ direction, expected, 1e-6)


@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
@pytest.mark.parametrize("kind", ("iou", "giou", "diou"))
def test_gradgradcheck_of_ious(function, kind):
    boxes = [random_boxes(5, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradgradcheck(lambda a, b: function(a, b, kind), boxes)


@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
@pytest.mark.parametrize("kind", IOU_KINDS)
def test_second_derivative_of_ious_is_the_twins(function, kind):
    """CIoU's too, whose alpha is a constant."""
    results = []
    for f in (function, getattr(reference, function.__name__)):
        boxes = [random_boxes(6, seed=seed).requires_grad_() for seed in (0, 1)]
        first = torch.autograd.grad(f(*boxes, kind).square().sum(), boxes, create_graph=True)
        results.append(torch.autograd.grad(sum(g.sin().sum() for g in first), boxes))
    for mine, theirs in zip(*results, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("kind", IOU_KINDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_derivatives_of_ious_of_degenerate_boxes(kind, dtype):
    rows = [[0, 0, 0, 0], [1, 1, 1, 1], [5, 5, 2, 2], [0, 0, 1e-30, 1e-30], [0, 0, 0, 9]]
    others = [[0, 0, 0, 0], [1, 1, 2, 2], [5, 5, 9, 9], [0, 0, 1e-30, 1e-30], [0, 0, 3, 3]]
    boxes = [torch.tensor(r, dtype=dtype, requires_grad=True) for r in (rows, others)]
    value = elementwise_iou(*boxes, kind)
    first = torch.autograd.grad(value.sum(), boxes, create_graph=True)
    tangents = tuple(torch.full_like(b, 0.25).detach() + i for i, b in enumerate(boxes))
    plain = tuple(b.detach() for b in boxes)
    _, forward = jvp(lambda a, b: elementwise_iou(a, b, kind), plain, tangents)
    expected = sum((g * t).sum(dim=1) for g, t in zip(first, tangents, strict=True))
    torch.testing.assert_close(forward, expected.detach(), rtol=1e-4, atol=1e-5)
    for second in torch.autograd.grad(sum(g.sum() for g in first), boxes):
        assert not second[[0, 1, 2, 4]].isnan().any()


def test_gradgradcheck_of_soft_rank():
    values = torch.rand(2, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: soft_rank(x, 0.3), values.requires_grad_())


@pytest.mark.parametrize("name", RANKINGS)
def test_ranking_losses_refuse_forward_mode(name, inputs):
    function = RANKINGS[name]
    z, direction, _ = inputs
    with pytest.raises(NotImplementedError, match="in reverse mode alone: use backward"):
        jvp(function, (z,), (direction,))
    with pytest.raises(NotImplementedError, match="in reverse mode alone: use backward"):
        jacfwd(function)(z)
    for leaf in (z, z.clone().requires_grad_()):
        with forward_ad.dual_level():
            # What has no tangent is as ever.
            assert_near(function(z.clone()).detach(), function(z).detach())
            with pytest.raises(NotImplementedError, match="in reverse mode alone: use backward"):
                function(forward_ad.make_dual(leaf, direction))


@pytest.mark.parametrize("name", RANKINGS)
def test_ranking_losses_refuse_a_second_derivative(name, inputs):
    """Also of a sum with other losses, whose gradient would hide that theirs is missing."""
    function = RANKINGS[name]
    z = inputs[0].clone().requires_grad_()
    for loss in (function(z), z.square().sum() + function(z)):
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        with pytest.raises(NotImplementedError, match="not differentiated again"):
            torch.autograd.grad(first.square().sum(), z)
    with pytest.raises(NotImplementedError, match="not differentiated again"):
        jacrev(jacrev(function))(z.detach())


def test_a_localization_loss_refuses_a_second_derivative():
    losses = IOUS.clone().requires_grad_()
    logits = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    value = step_error(logits, LABELS, "alrp", 1.0, losses)[1] + losses.square().sum()
    (first,) = torch.autograd.grad(value, losses, create_graph=True)
    with pytest.raises(NotImplementedError, match="not differentiated again"):
        torch.autograd.grad(first.sum(), losses)


@pytest.mark.parametrize(
    "call",
    [
        lambda z: torch.ops.corrdet.step_error(z, LABELS, "step", 1.0, None)[0],
        lambda z: torch.ops.corrdet.soft_rank(z, 1.0)[0],
        lambda z: torch.ops.corrdet.pairwise_iou(z[:, None].expand(-1, 4), BOXES, "iou"),
        lambda z: torch.ops.corrdet.elementwise_iou(z[:, None].expand(-1, 4), BOXES, "iou"),
    ],
)
def test_direct_calls_lose_no_tangent(call, inputs):
    z, direction, _ = inputs
    with pytest.raises(NotImplementedError, match="has no forward mode"):
        jvp(call, (z,), (direction,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has no forward mode"):
        call(forward_ad.make_dual(z, direction))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("elementwise_iou", "pairwise_iou"))
def test_compiled_transforms(name, inputs):
    function, z = SMOOTH[name], inputs[0]
    compiled = torch.compile(grad(function), backend="aot_eager", fullgraph=True)
    assert_near(compiled(z), gradient(function, z))


@pytest.mark.slow
@pytest.mark.parametrize("name", (*RANKINGS, "soft_rank", "correlation_loss"))
def test_compiled_transforms_of_what_cannot_be_traced(name, inputs):
    """Operators are called as without torch.compile there."""
    function = (RANKINGS | SMOOTH)[name]
    z, direction, rows = inputs
    expected = gradient(function, z)
    assert_near(torch.compile(grad(function), backend="aot_eager")(z), expected)
    assert_near(torch.compile(vmap(grad(function)), backend="aot_eager")(rows)[0], expected)
    assert_near(grad(torch.compile(function, backend="aot_eager"))(z), expected)

    def forward(x, v):
        return jvp(function, (x,), (v,))[1]

    compiled = torch.compile(forward, backend="aot_eager")
    if name in SMOOTH:
        assert_near(compiled(z, direction), expected @ direction)
    else:
        with pytest.raises(NotImplementedError, match="instead of forward mode"):
            compiled(z, direction)
