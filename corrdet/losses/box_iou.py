"""Losses that compare boxes by an IoU of each pair: IoU, GIoU, DIoU and CIoU."""

from torch import Tensor

from corrdet.ops import elementwise_iou

from ._checks import widened
from .matched_predictions import MatchedPredictions
from .registry import LOCALIZATION_LOSSES

# The least IoU that the IoU loss takes the logarithm of.
_LEAST_IOU = 1e-6


def iou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """-ln IoU of each pair of boxes (Yu et al. 2016, "UnitBox", https://arxiv.org/abs/1608.01471).

    Args:
        pred: (P, 4) boxes, XYXY.
        target: (P, 4) boxes, XYXY.

    Returns:
        (P,) losses; at most -ln 1e-6, without gradient, for boxes that overlap less than that.

    Raises:
        TypeError, ValueError: as :func:`corrdet.ops.elementwise_iou`.
    """
    return -elementwise_iou(widened(pred), widened(target)).clamp(min=_LEAST_IOU).log()


@LOCALIZATION_LOSSES.register(
    "iou",
    definition="`-ln I`, of `I` at least 1e-6",
    source="Yu et al. 2016",
)
def _iou(matched: MatchedPredictions) -> Tensor:
    return iou_loss(matched.boxes, matched.gt_boxes)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of each pair of boxes (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 2].
    """
    return 1 - elementwise_iou(widened(pred), widened(target), kind="giou")


@LOCALIZATION_LOSSES.register(
    "giou",
    bounded=True,
    definition="`1 - GIoU`",
    source="Rezatofighi et al. 2019",
)
def _giou(matched: MatchedPredictions) -> Tensor:
    return giou_loss(matched.boxes, matched.gt_boxes)


def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - DIoU of each pair of boxes (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 2].
    """
    return 1 - elementwise_iou(widened(pred), widened(target), kind="diou")


@LOCALIZATION_LOSSES.register(
    "diou",
    bounded=True,
    definition="`1 - DIoU`",
    source="Zheng et al. 2020",
)
def _diou(matched: MatchedPredictions) -> Tensor:
    return diou_loss(matched.boxes, matched.gt_boxes)


def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - CIoU of each pair of boxes (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).

    Args, Raises: as :func:`iou_loss`.

    Returns:
        (P,) losses in [0, 3].
    """
    return 1 - elementwise_iou(widened(pred), widened(target), kind="ciou")


@LOCALIZATION_LOSSES.register(
    "ciou",
    bounded=True,
    definition="`1 - CIoU`",
    source="Zheng et al. 2020",
)
def _ciou(matched: MatchedPredictions) -> Tensor:
    return ciou_loss(matched.boxes, matched.gt_boxes)
