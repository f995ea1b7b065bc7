"""What holds for every operator, found by listing corrdet/ops/kernels and the dispatcher."""

import inspect

import pytest
import torch

import corrdet.ops
from corrdet.ops import reference
from corrdet.ops._extension import HAS_CUDA
from corrdet.ops.kernels import OPERATORS
from tests.helpers.ops import assert_near

REGISTERED = [
    name.removeprefix("corrdet::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("corrdet::")
]


@pytest.fixture(params=OPERATORS)
def operator(request):
    return request.param


def arguments_on(device, operator, size):
    """Arguments of the operator's example, leaves on a device."""
    return [
        value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor) else value
        for value in OPERATORS[operator].example(size)
    ]  # fmt: skip


def run(function, arguments):
    """Results, and gradients of a weighted sum of them."""
    results = function(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    total = sum((result * torch.linspace(-1, 2, result.numel(), device=result.device)
                 .view_as(result)).sum() for result in results)  # fmt: skip
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    return *(result.detach() for result in results), *torch.autograd.grad(total, leaves)


def test_every_module_is_an_operator(operator):
    assert operator in corrdet.ops.__all__
    assert getattr(reference, operator) is OPERATORS[operator].reference
    function = getattr(corrdet.ops, operator)
    names = [
        list(inspect.signature(f).parameters) for f in (function, getattr(reference, operator))
    ]
    assert names[0] == names[1]


def test_unknown_names_are_an_error():
    for module in (corrdet.ops, reference):
        with pytest.raises(AttributeError, match="has no attribute 'hard_rank'"):
            module.hard_rank  # noqa: B018


@pytest.mark.parametrize("name", REGISTERED)
def test_kernels_are_registered(name):
    assert set(OPERATORS) <= set(REGISTERED)
    full_name = f"corrdet::{name}"
    for key in ["CPU", "Autograd"] + ["CUDA"] * HAS_CUDA:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key), key
    assert torch._library.simple_registry.singleton.find(full_name).fake_impl.kernel is not None


@pytest.mark.parametrize("size", (3, 400))
def test_against_reference(operator, size, device):
    arguments = arguments_on(device, operator, size)
    actual = run(getattr(corrdet.ops, operator), arguments)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in map(detach, arguments)]  # fmt: skip
    expected = run(getattr(reference, operator), wide)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_near(mine, theirs)


def detach(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


@pytest.mark.slow
def test_opcheck(operator, device):
    arguments = arguments_on(device, operator, 50)
    torch.library.opcheck(getattr(torch.ops.corrdet, operator), tuple(arguments))


@pytest.mark.slow
def test_compile(operator, device):
    arguments = arguments_on(device, operator, 60)
    function = getattr(corrdet.ops, operator)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(run(compiled, arguments), run(function, arguments), strict=True):
        assert_near(mine, theirs)
