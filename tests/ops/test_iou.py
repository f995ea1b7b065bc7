"""pairwise_iou and elementwise_iou against the reference, torchvision and their contract."""

import pytest
import torch
import torchvision

from corrdet.ops import elementwise_iou, pairwise_iou, reference
from corrdet.ops._boxes import IOU_KINDS
from tests.helpers.emulation import ORDERS
from tests.helpers.ops import DTYPES, assert_near, random_boxes, repeats


@pytest.fixture(params=IOU_KINDS)
def kind(request):
    return request.param


def compare(boxes1, boxes2, kind, function=pairwise_iou, tolerance=None):
    """Hold values and gradients together with those of the reference in float64."""
    slow = {pairwise_iou: reference.pairwise_iou, elementwise_iou: reference.elementwise_iou}
    mine = [boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()]
    theirs = [boxes.detach().double().cpu().requires_grad_() for boxes in mine]
    actual, expected = function(*mine, kind), slow[function](*theirs, kind)
    assert actual.dtype == boxes1.dtype and actual.device == boxes1.device
    assert_near(actual.detach(), expected.detach(), tolerance)
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    upstream = upstream.to(actual)
    actual = torch.autograd.grad(actual, mine, upstream)
    expected = torch.autograd.grad(expected, theirs, upstream.double().cpu())
    for my_gradient, their_gradient in zip(actual, expected, strict=True):
        assert_near(my_gradient, their_gradient, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, m", [(1, 1), (3, 200), (200, 3), (65, 1100), (2100, 65)])
def test_pairwise_against_reference(n, m, dtype, kind, device):
    boxes1 = random_boxes(n, dtype, device)
    boxes2 = random_boxes(m, dtype, device, seed=1)
    compare(boxes1, boxes2, kind)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise_against_reference(dtype, kind, device):
    boxes1 = random_boxes(500, dtype, device)
    boxes2 = random_boxes(500, dtype, device, seed=1)
    compare(boxes1, boxes2, kind, elementwise_iou)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
def test_degenerate_boxes(function, dtype, kind, device):
    boxes1 = random_boxes(60, dtype, device, inverted=True)
    boxes2 = random_boxes(60, dtype, device, seed=1, inverted=True)
    boxes2[:30] = boxes1[:30]  # identical, some without area
    boxes2[40:45, :2] = boxes1[40:45, 2:]  # touching in a corner
    compare(boxes1, boxes2, kind, function, 1e-10 if dtype == torch.float64 else 4e-5)
    values = function(boxes1, boxes2, kind)
    assert values.isfinite().all()
    assert values.max() <= 1
    assert values.min() >= {"iou": 0, "giou": -1, "diou": -1, "ciou": -2}[kind]


def test_boxes_without_area_have_iou_zero(device):
    inverted = torch.tensor([[5.0, 0, 2, 4], [0, 5, 4, 2], [5, 5, 2, 2], [3, 3, 3, 3]])
    inverted = inverted.to(device)
    box = torch.tensor([[0.0, 0, 9, 9]], device=device)
    assert pairwise_iou(inverted, box).tolist() == [[0.0]] * 4
    assert pairwise_iou(inverted, inverted).eq(0).all()
    for kind in IOU_KINDS[1:]:
        # A point on itself: no enclosing area, no diagonal, no penalty.
        assert elementwise_iou(inverted[3:], inverted[3:], kind).tolist() == [0.0]


def test_a_zero_may_be_negative(kind, device):
    zeros = torch.zeros(16, 4, device=device)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], device=device)] * 4)
    for function in (pairwise_iou, elementwise_iou):
        assert function(zeros * signs, zeros, kind).eq(0).all()
        assert function(zeros, zeros * signs, kind).eq(0).all()
        compare(zeros * signs, zeros, kind, function)


def test_identical_boxes_have_iou_one_and_no_gradient(kind, device):
    boxes = random_boxes(1000, torch.float32, device) * 1.7
    mine = boxes.clone().requires_grad_()
    values = elementwise_iou(mine, boxes, kind)
    assert values.eq(1).all()
    (gradient,) = torch.autograd.grad(values.sum(), mine)
    assert gradient.abs().max() < 1e-6


def test_symmetry_and_bounds_hold_exactly(kind, device):
    boxes1 = random_boxes(300, torch.float32, device)
    boxes2 = random_boxes(200, torch.float32, device, seed=1)
    values = pairwise_iou(boxes1, boxes2, kind)
    assert torch.equal(values, pairwise_iou(boxes2, boxes1, kind).t())
    assert values.max() <= 1
    assert kind != "iou" or values.min() >= 0


@pytest.mark.parametrize("offset", (1e6, -3e6, 1e7))
def test_boxes_far_from_the_origin(offset, kind, device):
    # Whole numbers, exact in float32 there.
    boxes1 = random_boxes(50, torch.float32, device).round() * 2 + offset
    boxes2 = random_boxes(70, torch.float32, device, seed=1).round() * 2 + offset
    compare(boxes1, boxes2, kind)


@pytest.mark.parametrize("scale", (1e-6, 1e6, 1e8))
def test_small_and_large_boxes(scale, kind, device):
    boxes1 = random_boxes(50, torch.float32, device) * scale
    boxes2 = random_boxes(70, torch.float32, device, seed=1) * scale
    compare(boxes1, boxes2, kind)


@pytest.mark.parametrize("coordinate", range(4))
@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
def test_nan_is_never_hidden(function, coordinate, kind, device):
    boxes1 = random_boxes(20, torch.float32, device)
    boxes2 = random_boxes(20, torch.float32, device, seed=1)
    boxes1[7, coordinate] = torch.nan
    boxes1.requires_grad_()
    values = function(boxes1, boxes2, kind)
    assert values[7].isnan().all()
    assert values.isnan().sum() == values[7].numel()
    assert function(boxes2, boxes1, kind).isnan().sum() == values[7].numel()
    (gradient,) = torch.autograd.grad(values.sum(), boxes1)
    assert gradient[7].isnan().all()
    assert gradient.isnan().sum() == 4


@pytest.mark.parametrize("n, m", [(0, 0), (0, 5), (5, 0)])
def test_empty_sets(n, m, kind, device):
    boxes1 = random_boxes(n, torch.float32, device).requires_grad_()
    boxes2 = random_boxes(m, torch.float32, device).requires_grad_()
    values = pairwise_iou(boxes1, boxes2, kind)
    assert values.shape == (n, m)
    values.sum().backward()
    assert boxes1.grad.eq(0).all() and boxes1.grad.shape == (n, 4)
    assert boxes2.grad.eq(0).all() and boxes2.grad.shape == (m, 4)


def test_no_pairs(kind, device):
    boxes = torch.empty(0, 4, device=device, requires_grad=True)
    values = elementwise_iou(boxes, boxes, kind)
    assert values.shape == (0,)
    values.sum().backward()
    assert boxes.grad.shape == (0, 4)


@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
def test_any_strides(function, kind, device):
    wide = torch.zeros(40, 9, device=device)
    wide[:, 1::2] = random_boxes(40, torch.float32, device)
    columns = random_boxes(40, torch.float32, device, seed=1).t().contiguous().t()
    one = random_boxes(1, torch.float32, device, seed=2).expand(40, 4)
    for boxes1, boxes2 in ((wide[:, 1::2], columns), (columns.flip(0), one), (one, wide[:, 1::2])):
        dense = boxes1.contiguous(), boxes2.contiguous()
        assert torch.equal(function(boxes1, boxes2, kind), function(*dense, kind))
        compare(boxes1, boxes2, kind, function)


@pytest.mark.parametrize("own", (0, 1))
def test_any_strides_of_the_gradient(own, kind, device):
    boxes = [random_boxes(n, torch.float64, device, seed=n) for n in (70, 90)]
    boxes[own].requires_grad_()
    dense = torch.rand(70, 90, dtype=torch.float64).to(device)
    padded = torch.zeros(140, 270, dtype=torch.float64, device=device)[::2, ::3]
    padded.copy_(dense)
    row, column, number = dense[:1], dense[:, :1], dense[0, 0]
    upstreams = [dense, dense.t().contiguous().t(), padded]
    upstreams += [part.expand(70, 90) for part in (row, column, number)]
    for upstream in upstreams:
        gradients = [
            torch.autograd.grad(pairwise_iou(*boxes, kind), boxes[own], each)[0]
            for each in (upstream, upstream.contiguous())
        ]
        assert_near(*gradients, tolerance=1e-14)


@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
@pytest.mark.parametrize("checked", ("iou", "giou", "diou"))
def test_gradcheck(function, checked, device):
    # CIoU's alpha is a constant for the gradient, which finite differences do not know.
    boxes1 = random_boxes(6, device=device).requires_grad_()
    boxes2 = random_boxes(6, device=device, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: function(a, b, checked), (boxes1, boxes2))


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_against_torchvision(kind, device):
    boxes1 = random_boxes(100, torch.float64, device).requires_grad_()
    boxes2 = random_boxes(120, torch.float64, device, seed=1)
    theirs = {
        "iou": torchvision.ops.box_iou,
        "giou": torchvision.ops.generalized_box_iou,
        "diou": torchvision.ops.distance_box_iou,
        "ciou": torchvision.ops.complete_box_iou,
    }[kind]
    actual, expected = pairwise_iou(boxes1, boxes2, kind), theirs(boxes1, boxes2)
    # torchvision adds 1e-7 to denominators.
    tolerance = 1e-10 if kind in ("iou", "giou") else 1e-6
    assert_near(actual.detach(), expected.detach(), tolerance)
    gradients = [torch.autograd.grad(values.sum(), boxes1)[0] for values in (actual, expected)]
    assert_near(*gradients, tolerance)


def test_pairwise_diagonal_is_elementwise(kind, device):
    boxes1 = random_boxes(80, torch.float32, device)
    boxes2 = random_boxes(80, torch.float32, device, seed=1)
    pairs = pairwise_iou(boxes1, boxes2, kind).diagonal()
    assert_near(elementwise_iou(boxes1, boxes2, kind), pairs, 1e-6)


@pytest.mark.slow
def test_repeats_are_bit_identical(kind, device):
    # Sizes that several threads share, with several chunks to add up.
    boxes1 = random_boxes(3000, torch.float32, device)
    boxes2 = random_boxes(2500, torch.float32, device, seed=1)
    upstream = torch.randn(3000, 2500, generator=torch.Generator().manual_seed(0)).to(device)

    def run():
        leaves = boxes1.clone().requires_grad_(), boxes2.clone().requires_grad_()
        values = pairwise_iou(*leaves, kind)
        return values.detach(), *torch.autograd.grad(values, leaves, upstream)

    results = repeats(run)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.slow
@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
def test_compile(function, kind, device):
    boxes1 = random_boxes(30, torch.float32, device).requires_grad_()
    boxes2 = random_boxes(30, torch.float32, device, seed=1).requires_grad_()

    def loss(a, b):
        return (1 - function(a * 2, b * 2, kind)).square().sum()

    expected = torch.autograd.grad(loss(boxes1, boxes2), (boxes1, boxes2))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(boxes1, boxes2), (boxes1, boxes2))
    for mine, theirs in zip(actual, expected, strict=True):
        assert_near(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, kind, device):
    ops = torch.ops.corrdet
    for n, m in ((7, 5), (0, 5), (7, 0)):
        boxes1 = random_boxes(n, dtype, device).requires_grad_()
        boxes2 = random_boxes(m, dtype, device, seed=1).requires_grad_()
        torch.library.opcheck(ops.pairwise_iou, (boxes1, boxes2, kind))
        saved = boxes1.detach(), boxes2.detach(), kind
        grad = torch.rand(n, m, device=device).to(dtype)
        torch.library.opcheck(ops.pairwise_iou_backward, (grad, *saved))
        pairs = boxes1[: min(n, m)].detach().requires_grad_(), boxes2[: min(n, m)].detach()
        torch.library.opcheck(ops.elementwise_iou, (*pairs, kind))
        grad = torch.rand(min(n, m), device=device).to(dtype)
        saved = pairs[0].detach(), pairs[1], kind
        torch.library.opcheck(ops.elementwise_iou_backward, (grad, *saved))


def test_autocast(kind, device):
    boxes1, boxes2 = random_boxes(9, torch.float32, device), random_boxes(8, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        values = pairwise_iou(boxes1, boxes2, kind)
    assert values.dtype == torch.float32
    assert torch.equal(values, pairwise_iou(boxes1, boxes2, kind))


BOX = torch.zeros(2, 4)


@pytest.mark.parametrize("function", (pairwise_iou, elementwise_iou))
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([[0, 0, 1, 1]], BOX), TypeError, "boxes1 must be a torch.Tensor, got list"),
        ((BOX, None), TypeError, "boxes2 must be a torch.Tensor, got NoneType"),
        ((BOX.long(), BOX.long()), TypeError, "boxes1 must be float16.* got int64"),
        ((BOX, BOX.bool()), TypeError, "boxes2 must be float16.* got bool"),
        ((BOX, BOX.to(torch.complex64)), TypeError, "got complex64"),
        ((BOX, BOX.double()), TypeError, "same dtype, got torch.float32 and torch.float64"),
        ((BOX[0], BOX), ValueError, r"boxes1 must have shape \(N, 4\), got \(4,\)"),
        ((BOX, BOX[None]), ValueError, r"boxes2 must have shape \(N, 4\), got \(1, 2, 4\)"),
        ((BOX[:, :3], BOX), ValueError, r"boxes1 must have shape \(N, 4\), got \(2, 3\)"),
        ((BOX, BOX.to("meta")), ValueError, "same device, got cpu and meta"),
        ((BOX, BOX, "eiou"), ValueError, "one of 'iou', 'giou', 'diou', 'ciou', got 'eiou'"),
        ((BOX, BOX, None), ValueError, "got None"),
    ],
)
def test_bad_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_unpaired_boxes():
    with pytest.raises(ValueError, match="same number of boxes, got 2 and 1"):
        elementwise_iou(BOX, BOX[:1])


@pytest.mark.parametrize(
    "operator, arguments, error",
    [
        ("pairwise_iou", (BOX, BOX[:, :3], "iou"), ValueError),
        ("pairwise_iou", (BOX, BOX.double(), "iou"), TypeError),
        ("pairwise_iou", (BOX, BOX, "none"), ValueError),
        ("pairwise_iou_backward", (torch.zeros(2, 3), BOX, BOX, "iou"), ValueError),
        ("pairwise_iou_backward", (torch.zeros(2, 2).double(), BOX, BOX, "iou"), TypeError),
        ("elementwise_iou", (BOX, BOX[:1], "iou"), ValueError),
        ("elementwise_iou_backward", (torch.zeros(3), BOX, BOX, "iou"), ValueError),
    ],
)
def test_operators_guard_themselves(operator, arguments, error):
    with pytest.raises(error):
        getattr(torch.ops.corrdet, operator)(*arguments)


@pytest.mark.parametrize("operator", ("pairwise_iou", "elementwise_iou"))
def test_the_names_are_those_of_the_kernels(operator):
    names = ", ".join(map(repr, IOU_KINDS))
    with pytest.raises(ValueError, match=f"kind must be one of {names}, got 'none'"):
        getattr(torch.ops.corrdet, operator)(BOX, BOX, "none")


def emulate_pairwise(emulator, boxes1, boxes2, kind, **options):
    n, m = len(boxes1), len(boxes2)
    output = boxes1.new_full((n, m), -9)
    emulator.run(
        "pairwise_iou", boxes1.dtype, boxes1, n, 4, 1, boxes2, m, 4, 1, kind, output, **options
    )
    return output


def emulate_pairwise_backward(emulator, grad, boxes1, boxes2, kind, **options):
    output = torch.full_like(boxes1, -9)
    memory = grad if grad.is_contiguous() else grad.t()
    emulator.run(
        "pairwise_iou_backward", grad.dtype, memory, *grad.stride(), boxes1, len(boxes1), 4, 1,
        boxes2, len(boxes2), 4, 1, kind, output, **options,
    )  # fmt: skip
    return output


def emulate_elementwise(emulator, grad, boxes1, boxes2, kind, **options):
    ious, *gradients = (torch.full_like(like, -9) for like in (grad, boxes1, boxes2))
    boxes = boxes1, 4, 1, boxes2, 4, 1, len(grad), kind
    emulator.run("elementwise_iou", grad.dtype, *boxes, ious, **options)
    emulator.run("elementwise_iou_backward", grad.dtype, grad, 1, *boxes, *gradients, **options)
    return ious, *gradients


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n, m, grid", [(1, 1, 8), (5, 700, 2), (300, 7, 8), (33, 65, 1)])
def test_emulated_pairwise(emulator, n, m, grid, kind, order, dtype):
    options = {"order": order, "grid": grid}
    boxes1 = random_boxes(n, dtype, inverted=True).requires_grad_()
    boxes2 = random_boxes(m, dtype, seed=1, inverted=True)
    boxes2[0] = boxes1.detach()[0]
    expected = reference.pairwise_iou(boxes1, boxes2, kind)
    assert_near(emulate_pairwise(emulator, boxes1, boxes2, kind, **options), expected.detach())

    upstream = torch.randn(n, m, generator=torch.Generator().manual_seed(2), dtype=dtype)
    (gradient,) = torch.autograd.grad(expected, boxes1, upstream)
    for grad in (upstream, upstream.t().contiguous().t()):
        actual = emulate_pairwise_backward(emulator, grad, boxes1, boxes2, kind, **options)
        assert_near(actual, gradient)


def test_emulated_pairwise_backward_in_chunks(emulator):
    boxes1 = random_boxes(3).requires_grad_()
    boxes2 = random_boxes(2500, seed=1)
    expected = reference.pairwise_iou(boxes1, boxes2, "giou")
    upstream = torch.rand_like(expected)
    (gradient,) = torch.autograd.grad(expected, boxes1, upstream)
    actual = emulate_pairwise_backward(emulator, upstream, boxes1, boxes2, "giou", order="random")
    assert_near(actual, gradient)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("n, grid", [(1, 8), (1000, 2)])
def test_emulated_elementwise(emulator, n, grid, kind, dtype):
    boxes = [random_boxes(n, dtype, seed=seed, inverted=True).requires_grad_() for seed in (0, 1)]
    expected = reference.elementwise_iou(*boxes, kind)
    upstream = torch.linspace(-1, 2, n, dtype=dtype)
    gradients = torch.autograd.grad(expected, boxes, upstream)
    options = {"order": "random", "grid": grid}
    ious, *actual = emulate_elementwise(emulator, upstream, *boxes, kind, **options)
    assert_near(ious, expected.detach())
    for mine, theirs in zip(actual, gradients, strict=True):
        assert_near(mine, theirs)


# Two tiles for one block, so that the barrier between them counts too. Without any one of them a
# thread must be seen to come too early.
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("barrier", range(4))
def test_emulated_every_barrier_of_pairwise_backward_is_needed(emulator, barrier, order):
    boxes1, boxes2 = random_boxes(40, torch.float32), random_boxes(70, torch.float32, seed=1)
    arguments = emulator, torch.ones(40, 70), boxes1, boxes2, "iou"
    # Of one item: 0 and 2 after a tile is loaded, 1 between the tiles, 3 before the last sums.
    options = {"order": order, "grid": 1, "launch": 2}  # after both sets of boxes are prepared
    emulate_pairwise_backward(*arguments, **options)
    with pytest.raises(RuntimeError, match="race|before any write"):
        emulate_pairwise_backward(*arguments, skip_barrier=barrier, **options)


def test_emulated_writes_past_an_output_are_found(emulator):
    boxes = random_boxes(40, torch.float32)
    for function, *grad in (
        (emulate_pairwise,),
        (emulate_pairwise_backward, torch.ones(40, 40)),
        (emulate_elementwise, torch.ones(40)),
    ):
        function(emulator, *grad, boxes, boxes, "iou")
        with pytest.raises(RuntimeError, match="out of bounds: output"):
            function(emulator, *grad, boxes, boxes, "iou", missing=1)
