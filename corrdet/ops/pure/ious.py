"""IoUs of boxes, some rows of pairs at a time, so that little is stored beside the results."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._boxes import reference_iou
from .._operators import operator

# Pairs that are computed at once.
CHUNK = 2**18


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    length = max(1, CHUNK // max(1, columns))
    for begin in range(0, rows, length):
        yield slice(begin, begin + length)


def pull_back(function: Callable[..., Tensor], grad: Tensor, *boxes: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a function of boxes, weighted with `grad`."""
    # Below an operator autograd is switched off; torch.func brings its own.
    return torch.func.vjp(function, *boxes)[1](grad)


@operator("pairwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor")
def pairwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    result = boxes1.new_empty((len(boxes1), len(boxes2)))
    for part in row_chunks(*result.shape):
        result[part] = reference_iou(boxes1[part, None], boxes2[None], kind)
    return result


@operator("pairwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind) -> Tensor")
def pairwise_iou_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    """Of boxes1 alone; every kind is symmetric in its boxes."""
    result = torch.zeros_like(boxes1)
    for part in row_chunks(*grad.shape):
        (result[part],) = pull_back(
            lambda boxes: reference_iou(boxes[:, None], boxes2[None], kind),
            grad[part],
            boxes1[part],
        )
    return result


@operator("elementwise_iou(Tensor boxes1, Tensor boxes2, str kind) -> Tensor")
def elementwise_iou(boxes1: Tensor, boxes2: Tensor, kind: str) -> Tensor:
    result = boxes1.new_empty(len(boxes1))
    for part in row_chunks(len(boxes1), 1):
        result[part] = reference_iou(boxes1[part], boxes2[part], kind)
    return result


@operator(
    "elementwise_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, str kind)"
    " -> (Tensor, Tensor)"
)
def elementwise_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    results = torch.zeros_like(boxes1), torch.zeros_like(boxes2)
    for part in row_chunks(len(boxes1), 1):
        found = pull_back(
            lambda a, b: reference_iou(a, b, kind), grad[part], boxes1[part], boxes2[part]
        )
        for result, gradient in zip(results, found, strict=True):
            result[part] = gradient
    return results
