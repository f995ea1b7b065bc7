"""IoU of boxes that are paired already."""

import torch
from torch import Tensor

from .._backend import backend
from .._boxes import check_boxes, check_kind, check_pairs, example_boxes, reference_iou
from .._transforms import find_operator, is_transformed, register_autograd, register_fake


def elementwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str = "iou") -> Tensor:
    """Compute the IoU, GIoU, DIoU or CIoU of each box with its partner in another set.

    The values and gradients are those of the diagonal of :func:`corrdet.ops.pairwise_iou`, which
    says what they are for degenerate boxes, ties and NaN.

    Args:
        boxes1: (N, 4) boxes as x1, y1, x2, y2, in any unit of length; float16, bfloat16, float32 or
            float64, any strides. The halves are computed in float32.
        boxes2: (N, 4), in the same unit, dtype and device.
        kind: "iou", "giou", "diou" or "ciou".

    Returns:
        (N,) in the dtype of the boxes.

    Raises:
        TypeError: not a tensor, not floating point, or the dtypes differ.
        ValueError: wrong shape, different numbers of boxes, different devices, or unknown kind.
    """
    check_boxes(boxes1, boxes2)
    check_pairs(boxes1, boxes2)
    check_kind(kind)
    if is_transformed() or backend(boxes1.device) == "reference":
        return reference(boxes1, boxes2, kind)
    return find_operator("elementwise_iou", boxes1.device)(boxes1, boxes2, kind)


def reference(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """The twin of :func:`corrdet.ops.elementwise_iou`."""
    return reference_iou(boxes1, boxes2, kind)


def example(size: int, seed: int = 0) -> tuple:
    """Arguments of a call with `size` pairs of boxes."""
    return example_boxes(size, seed).requires_grad_(), example_boxes(size, seed + 1), "ciou"


@register_fake("elementwise_iou")
def _(boxes1, boxes2, kind):
    return boxes1.new_empty((boxes1.shape[0],))


@register_fake("elementwise_iou_backward")
def _(grad, boxes1, boxes2, kind):
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _setup_context(ctx, inputs, output):
    boxes1, boxes2, ctx.kind = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx, grad):
    boxes1, boxes2 = ctx.saved_tensors
    operator = find_operator("elementwise_iou_backward", grad.device)
    grad1, grad2 = operator(grad, boxes1, boxes2, ctx.kind)
    return grad1, grad2, None


register_autograd("elementwise_iou", _backward, _setup_context)


def _setup_backward(ctx, inputs, output):
    grad, boxes1, boxes2, ctx.kind = inputs
    ctx.save_for_backward(grad, boxes1, boxes2)


def _backward_backward(ctx, grad_grad1, grad_grad2):
    def first_derivative(grad, boxes1, boxes2):
        return torch.func.vjp(lambda a, b: reference(a, b, ctx.kind), boxes1, boxes2)[1](grad)

    pull_back = torch.func.vjp(first_derivative, *ctx.saved_tensors)[1]
    return *pull_back((grad_grad1, grad_grad2)), None


register_autograd("elementwise_iou_backward", _backward_backward, _setup_backward)
