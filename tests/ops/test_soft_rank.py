"""soft_rank against the reference, scipy and what a projection onto the permutahedron must be."""

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from corrdet.ops import reference, soft_rank
from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, assert_near, repeats

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 100.0)


def random_values(*shape, dtype=torch.float64, device="cpu", seed=0, ties=True):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if ties:
        values[..., 1::4] = values[..., :1]
    return values.to(device, dtype)


def compare(values, strength):
    """Hold ranks and gradients together with those of the reference in float64."""
    mine = values.detach().requires_grad_()
    theirs = values.detach().double().cpu().requires_grad_()
    actual, expected = soft_rank(mine, strength), reference.soft_rank(theirs, strength)
    assert actual.dtype == values.dtype and actual.device == values.device
    assert_near(actual.detach(), expected.detach())
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(actual)
    (actual,) = torch.autograd.grad(actual, mine, upstream)
    (expected,) = torch.autograd.grad(expected, theirs, upstream.double().cpu())
    assert_near(actual, expected)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (2,), (300,), (4, 7), (2, 3, 50), (1500,)], ids=str)
def test_against_reference(shape, dtype, strength, device):
    compare(random_values(*shape, dtype=dtype, device=device), strength)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("n", (5, 1000, 20000))
def test_against_scipy(n, strength, device):
    values = random_values(n, device=device)
    array = np.sort(values.cpu().numpy())
    regression = isotonic_regression(array / strength - np.arange(1, n + 1)).x
    expected = torch.from_numpy(array / strength - regression)
    assert_near(soft_rank(values, strength).sort().values.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", (1e-300, 1e-30, 1e-9))
def test_tiny_strength_gives_exact_ranks(strength, dtype, device):
    values = random_values(3, 200, dtype=dtype, device=device).requires_grad_()
    ranks = soft_rank(values, strength)
    expected = rankdata(values.detach().double().cpu(), axis=1)  # ties: their mean rank
    assert torch.equal(ranks.detach().cpu(), torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize("strength", (1e-300, 1e-3, 1.0))
@pytest.mark.parametrize("value", (0.1, -3e38, 1e-40))
def test_a_row_of_one_value(value, strength, device):
    values = torch.full((1001,), value, device=device)
    assert soft_rank(values, strength).eq(501).all()


@pytest.mark.parametrize("strength", (1.0, 1e3, 1e9, 1e300))
def test_large_strength_is_affine(strength, device):
    values = torch.rand(500, dtype=torch.float64).to(device)
    strength *= 2 / 500  # one pool from 2 * (max - min) / n on
    expected = 250.5 + (values - values.mean()) / strength
    assert_near(soft_rank(values, strength), expected)


def test_strength_between_is_neither(device):
    values = torch.rand(500, dtype=torch.float64).to(device)
    *_, pools = torch.ops.corrdet.soft_rank(values, 1e-3)
    assert 1 < len(pools.unique()) < 500


@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_a_projection_must_be(strength, device):
    values = random_values(400, device=device)
    ranks = soft_rank(values, strength)
    order = values.argsort(stable=True)
    assert_near(ranks.sum(), torch.tensor(400 * 401 / 2, dtype=torch.float64))
    assert ranks.min() >= 1 - 1e-9 and ranks.max() <= 400 + 1e-9
    assert ranks[order].diff().min() > -1e-9
    tied = values == values[0]
    assert tied.sum() > 50 and ranks[tied].eq(ranks[0]).all()
    # Every partial sum of the smallest ranks is at least that of 1, 2, 3, ...
    least = torch.arange(1, 401, device=device).cumsum(0)
    assert (ranks[order].cumsum(0) - least).min() > -1e-6


@pytest.mark.parametrize("strength", (1e-3, 0.03))
def test_permutation_equivariance(strength, device):
    values = random_values(3000, device=device, dtype=torch.float32)
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(soft_rank(values, strength)[shuffled], soft_rank(values[shuffled], strength))


def test_signed_zeros_are_tied(device):
    assert soft_rank(torch.tensor([0.0, -0.0, 1.0], device=device), 1e-6).tolist() == [1.5, 1.5, 3]


@pytest.mark.parametrize("offset", (1e6, -1e9))
def test_values_far_from_zero(offset, device):
    values = (torch.arange(2000).remainder(301).double() + offset).to(device)
    assert_near(soft_rank(values, 0.01), soft_rank(values - offset, 0.01))


@pytest.mark.parametrize("n", (10, 5000))
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_undefined_rows(bad, n, device):
    values = random_values(3, n, device=device, dtype=torch.float32)
    values[1, 3] = bad
    values.requires_grad_()
    ranks = soft_rank(values, 0.1)
    (gradient,) = torch.autograd.grad(ranks[:, :2].sum(), values)
    for result in (ranks, gradient):
        assert result[1].isnan().all()
        assert result[0].isfinite().all() and result[2].isfinite().all()


def test_nan_with_its_sign_set(device):
    values = torch.tensor([1.0, float("nan"), 2.0], device=device)
    assert soft_rank(-values).isnan().all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)], ids=str)
def test_empty(shape, device):
    values = torch.empty(shape, device=device, requires_grad=True)
    ranks = soft_rank(values)
    assert ranks.shape == shape
    ranks.sum().backward()
    assert values.grad.shape == shape


def test_one_value(device):
    values = torch.tensor([[7.0], [-3.0]], device=device, requires_grad=True)
    ranks = soft_rank(values)
    assert ranks.tolist() == [[1], [1]]
    ranks.sum().backward()
    assert values.grad.tolist() == [[0], [0]]


def test_any_strides(device):
    wide = random_values(40, 60, device=device)
    for values in (wide.t(), wide[::2, ::3], wide[:1].expand(5, 60), wide.flip(1)):
        assert torch.equal(soft_rank(values, 0.1), soft_rank(values.contiguous(), 0.1))
        compare(values, 0.1)


@pytest.mark.parametrize("strength", (0.05, 0.3, 10.0))
def test_gradcheck(strength, device):
    # No ties, which are kinks; seeds whose pools are not about to join or to part.
    values = random_values(2, 12, device=device, ties=False, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_rank(x, strength), values)


@pytest.mark.parametrize("n", (50, 30000))
def test_repeats_are_bit_identical(n, device):
    values = random_values(8, n, dtype=torch.float32, device=device)

    def run():
        leaf = values.clone().requires_grad_()
        ranks = soft_rank(leaf, 0.01)
        (ranks * ranks).sum().backward()
        return ranks.detach(), leaf.grad

    results = repeats(run)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compile(backend, device):
    values = random_values(3, 40, dtype=torch.float32, device=device).requires_grad_()

    def loss(x):
        return (soft_rank(x * 2, 0.3) - 1).square().sum()

    (expected,) = torch.autograd.grad(loss(values), values)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    (actual,) = torch.autograd.grad(compiled(values), values)
    assert_near(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), (0,), (3, 0)], ids=str)
def test_opcheck(shape, dtype, device):
    values = random_values(*shape, dtype=dtype, device=device, ties=False).requires_grad_()
    torch.library.opcheck(torch.ops.corrdet.soft_rank, (values, 0.2))
    grad = values.detach().sin()
    _, *saved = torch.ops.corrdet.soft_rank(values.detach(), 0.2)
    torch.library.opcheck(torch.ops.corrdet.soft_rank_backward, (grad, *saved, 0.2))


VALUES = torch.zeros(3)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([1.0, 2.0],), TypeError, "values must be a torch.Tensor, got list"),
        ((VALUES.int(),), TypeError, "values must be float16.* got int32"),
        ((VALUES[0],), ValueError, "0-dimensional"),
        ((VALUES, 0.0), ValueError, "strength must be positive and finite, got 0.0"),
        ((VALUES, -1), ValueError, "got -1"),
        ((VALUES, float("nan")), ValueError, "got nan"),
        ((VALUES, float("inf")), ValueError, "got inf"),
        ((VALUES, None), TypeError, "strength must be a number, got NoneType"),
        ((VALUES, True), TypeError, "got bool"),
        ((VALUES, torch.tensor(1.0)), TypeError, "got Tensor"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        soft_rank(*arguments)


def test_operators_guard_themselves():
    ops = torch.ops.corrdet
    ranks, permutation, pools = ops.soft_rank(VALUES, 1.0)
    for arguments in ((VALUES, 0.0), (VALUES[0], 1.0), (VALUES, float("nan"))):
        with pytest.raises(ValueError):
            ops.soft_rank(*arguments)
    with pytest.raises(ValueError):
        ops.soft_rank_backward(ranks[:2], permutation, pools, 1.0)
    with pytest.raises(TypeError):
        ops.soft_rank_backward(ranks, permutation.int(), pools, 1.0)


def emulate(emulator, values, strength, threads=64, **options):
    values, permutation = values.sort(stable=True)
    ranks, pools = torch.full_like(values, -9), torch.full_like(permutation, -9)
    emulator.run(
        "soft_rank", values.dtype, values, permutation, *values.shape, strength, threads, ranks,
        pools, **options,
    )  # fmt: skip
    return ranks, permutation, pools


def emulate_backward(emulator, grad, permutation, pools, strength, threads=64, **options):
    output = torch.full_like(grad, -9)
    emulator.run(
        "soft_rank_backward", grad.dtype, grad, permutation, pools, *grad.shape, strength, threads,
        output, **options,
    )  # fmt: skip
    return output


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("strength", (1e-12, 1e-3, 3e-2, 0.3, 1e3))
@pytest.mark.parametrize("n, threads", [(1, 32), (2, 0), (31, 32), (200, 96), (500, 0)])
def test_emulated(emulator, n, threads, strength, order, dtype):
    options = {"order": order, "threads": threads, "grid": 2}
    values = random_values(3, n, dtype=dtype).requires_grad_()
    ranks, *saved = emulate(emulator, values.detach(), strength, **options)
    if strength == 1e-12:  # where the reference's rounding errors show
        expected = torch.from_numpy(rankdata(values.detach(), axis=1)).to(dtype)
    else:
        expected = reference.soft_rank(values, strength)
    assert_near(ranks, expected.detach())
    upstream = torch.randn(3, n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    actual = emulate_backward(emulator, upstream, *saved, strength, **options)
    assert_near(actual, torch.ops.corrdet.soft_rank_backward(upstream, *saved, strength))
    if strength > 1e-12:
        assert_near(actual, torch.autograd.grad(expected, values, upstream)[0])


@pytest.mark.parametrize("threads", (32, 160, 0))
def test_emulated_long_row(emulator, threads):
    # Steps and slopes on all scales, so that pools form at every level of the merging.
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(0, 1, 2000), torch.full((1000,), 0.5)
    values = torch.cat([*steps, torch.rand(1999, generator=generator)])[None]
    for strength in (1e-5, 2e-4, 1e-3):
        ranks, _, pools = emulate(emulator, values, strength, threads=threads, order="random")
        expected, _, expected_pools = torch.ops.corrdet.soft_rank(values, strength)
        assert_near(ranks, expected)
        assert torch.equal(pools, expected_pools)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_emulated_undefined_rows(emulator, bad):
    values = random_values(3, 100, dtype=torch.float32)
    values[1, 17] = bad
    ranks, *saved = emulate(emulator, values, 0.1, grid=1)
    for result in (ranks, emulate_backward(emulator, ranks, *saved, 0.1, grid=1)):
        assert result.isnan().all(1).tolist() == [False, True, False]
        assert result.isnan().any(1).tolist() == [False, True, False]


# Two rows for one block, so that the barriers at the end of a row count too. Without any one of
# them a thread must be seen to come too early.
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(8))
def test_emulated_every_barrier_is_needed(emulator, barrier, order):
    # 64 threads merge in 6 steps, with a barrier before each, then one before and after the ranks.
    values = torch.linspace(0, 1, 200).repeat(2, 1)
    emulate(emulator, values, 1.0, order=order, grid=1)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulate(emulator, values, 1.0, order=order, grid=1, skip_barrier=barrier)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(2))
def test_emulated_every_barrier_of_backward_is_needed(emulator, barrier, order):
    values = torch.linspace(0, 1, 200).repeat(2, 1)
    _, *saved = emulate(emulator, values, 1.0)
    emulate_backward(emulator, values, *saved, 1.0, order=order, grid=1)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulate_backward(emulator, values, *saved, 1.0, order=order, grid=1, skip_barrier=barrier)


def test_emulated_writes_past_an_output_are_found(emulator):
    values = torch.rand(1, 100)
    _, *saved = emulate(emulator, values, 0.1)
    emulate_backward(emulator, values, *saved, 0.1)
    with pytest.raises(RuntimeError, match="out of bounds: output"):
        emulate(emulator, values, 0.1, missing=1)
    with pytest.raises(RuntimeError, match="out of bounds: output"):
        emulate_backward(emulator, values, *saved, 0.1, missing=1)
