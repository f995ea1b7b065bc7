"""IoU of every pair of two sets of boxes."""

import torch
from torch import Tensor

from .._backend import backend
from .._boxes import check_boxes, check_kind, example_boxes, reference_iou
from .._transforms import find_operator, is_transformed, register_autograd, register_fake


def pairwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """Compute the IoU, GIoU, DIoU or CIoU of each box of one set with each box of another.

    The computation is a single pass that writes N x M values, forward, and a pass that reads as
    many, backward. Nothing else of that size is stored.

    A side whose end lies before its start counts as a side of length 0 at its start. Where both
    boxes have area 0 the IoU is 0; a penalty whose denominator is 0 (enclosing box without area for
    GIoU, without diagonal for DIoU and CIoU) is 0. A NaN coordinate makes every IoU of its box NaN.
    Areas, and for DIoU and CIoU squared diagonals, must be finite in the type of the arithmetic:
    coordinates below 1e19 in float32.

    Differentiable in both arguments, in reverse and forward mode and more than once; but for the
    first gradient in reverse mode in plain PyTorch, with some 30 N x M values in memory. Where
    coordinates of two boxes are equal, each gets half of the gradient of their minimum or maximum;
    the gradient of the IoU of identical boxes is then 0. CIoU's alpha is a constant, as its paper
    trains it. Results do not depend on the number of threads, and are the same on every run.

    Args:
        boxes1: (N, 4) boxes as x1, y1, x2, y2, in any unit of length; float16, bfloat16, float32 or
            float64, any strides. The halves are computed in float32.
        boxes2: (M, 4), in the same unit, dtype and device.
        kind: "iou"; "giou" (Rezatofighi et al. 2019, Eq. 1-2); "diou" or "ciou" (Zheng et al. 2020,
            Eq. 6-11).

    Returns:
        (N, M) in the dtype of the boxes: IoU in [0, 1], GIoU and DIoU in [-1, 1], CIoU in (-2, 1].

    Raises:
        TypeError: not a tensor, not floating point, or the dtypes differ.
        ValueError: wrong shape, different devices, or unknown kind.
    """
    check_boxes(boxes1, boxes2)
    check_kind(kind)
    if is_transformed() or backend(boxes1.device) == "reference":
        return reference(boxes1, boxes2, kind)
    return find_operator("pairwise_iou", boxes1.device)(boxes1, boxes2, kind)


def reference(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """The twin of :func:`corrdet.ops.pairwise_iou`, all pairs as one broadcast."""
    return reference_iou(boxes1[:, None], boxes2[None], kind)


def example(size: int, seed: int = 0) -> tuple:
    """Arguments of a call with `size` boxes, and some of the other set."""
    boxes2 = example_boxes(max(1, round(size**0.5)), seed + 1)
    return example_boxes(size, seed).requires_grad_(), boxes2, "giou"


@register_fake("pairwise_iou")
def _(boxes1, boxes2, kind):
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]))


@register_fake("pairwise_iou_backward")
def _(grad, boxes1, boxes2, kind):
    return boxes1.new_empty(boxes1.shape)


def _setup_context(ctx, inputs, output):
    boxes1, boxes2, ctx.kind = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx, grad):
    boxes1, boxes2 = ctx.saved_tensors
    operator = find_operator("pairwise_iou_backward", grad.device)
    grad1 = grad2 = None
    if ctx.needs_input_grad[0]:
        grad1 = operator(grad, boxes1, boxes2, ctx.kind)
    if ctx.needs_input_grad[1]:
        # Every kind is symmetric in its boxes.
        grad2 = operator(grad.t(), boxes2, boxes1, ctx.kind)
    return grad1, grad2, None


register_autograd("pairwise_iou", _backward, _setup_context)


def _setup_backward(ctx, inputs, output):
    grad, boxes1, boxes2, ctx.kind = inputs
    ctx.save_for_backward(grad, boxes1, boxes2)


def _backward_backward(ctx, grad_grad1):
    def first_derivative(grad, boxes1, boxes2):
        pull_back = torch.func.vjp(lambda boxes: reference(boxes, boxes2, ctx.kind), boxes1)[1]
        return pull_back(grad)[0]

    return *torch.func.vjp(first_derivative, *ctx.saved_tensors)[1](grad_grad1), None


register_autograd("pairwise_iou_backward", _backward_backward, _setup_backward)
