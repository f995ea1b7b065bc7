"""One-to-one matching of the lowest total cost, as in DETR and Sparse R-CNN."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from corrdet.activation import ACTIVATIONS, num_classes
from corrdet.ops import pairwise_iou

from .common import check_ground_truth, check_same_device, check_tensor, labels_and_boxes


@torch.no_grad()
def hungarian_matching(
    logits: Tensor,
    boxes: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_classes: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    classification_weight: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Give every ground truth one prediction of its own, at the lowest total cost of an image.

    The cost of a pair is the weighted sum of the focal loss of the class as a positive less that
    as a negative, the L1 distance of boxes in units of the image's width and height, and -GIoU
    (Sun et al. 2021, Sec. 3.3 and Eq. 1; https://arxiv.org/abs/2011.12450). Of softmax classifiers
    it has the negative probability of the class, and the distance of centres and sides in place of
    corners (DETR, Carion et al. 2020, Sec. 3.1 and A.2; https://arxiv.org/abs/2005.12872). If there
    are more ground truths than predictions, those that cost most go without.

    The costs of all images go to the CPU together, the matches come back together. A cost that is
    not finite counts as a very high one: the losses will tell.

    Letters: N images, Q predictions of each, M ground truths of an image, C classes.

    Args:
        logits: (N, Q, C) of sigmoid classifiers, or (N, Q, C + 1) of a softmax with the background
            last; floating point.
        boxes: (N, Q, 4) predicted boxes, XYXY in pixels, floating point.
        gt_boxes: of each image (M, 4), XYXY in pixels, float32.
        gt_classes: of each image (M,) int64 in 0..C-1.
        image_sizes: (height, width) of each image, in pixels.
        classification_weight: of the focal cost, or of the probability.
        l1_weight: of the L1 distance.
        giou_weight: of -GIoU.
        alpha: of the focal loss.
        gamma: of the focal loss.
        activation: of the classifiers, "sigmoid" or "softmax".

    Returns:
        labels (N, Q): 0..C-1, or C for background; and boxes (N, Q, 4): the matched ground-truth
        box, undefined where the label is C.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, lists that are not N long, or an
            unknown activation.
    """
    _check_arguments(logits, boxes, gt_boxes, gt_classes, image_sizes, activation)
    num_images, num_predictions = logits.shape[:2]
    background = num_classes(logits, activation)
    logits, boxes = logits.float(), boxes.float()
    class_costs = _class_costs(logits, activation, alpha, gamma)
    costs = []
    for image, image_size in enumerate(image_sizes):
        check_ground_truth(boxes[image], gt_boxes[image], gt_classes[image])
        costs.append(
            classification_weight * class_costs[image][:, gt_classes[image]]
            + l1_weight * _distances(boxes[image], gt_boxes[image], image_size, activation)
            - giou_weight * pairwise_iou(boxes[image], gt_boxes[image], kind="giou")
        )

    matched = torch.full((num_images, num_predictions), -1)
    if costs:
        on_cpu = torch.cat([cost.flatten() for cost in costs]).double()
        on_cpu = on_cpu.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).cpu()
        on_cpu = on_cpu.split([cost.numel() for cost in costs])
        for image, (flat, cost) in enumerate(zip(on_cpu, costs, strict=True)):
            rows, columns = linear_sum_assignment(flat.view(cost.shape).numpy())
            matched[image, rows] = torch.from_numpy(columns)
    matched = matched.to(logits.device)
    targets = [
        labels_and_boxes(matched[image], gt_boxes[image], gt_classes[image], background)
        for image in range(num_images)
    ]
    if not targets:
        return matched, boxes
    return torch.stack([labels for labels, _ in targets]), torch.stack([box for _, box in targets])


def _check_arguments(logits, boxes, gt_boxes, gt_classes, image_sizes, activation) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be 'sigmoid' or 'softmax', got {activation!r}")
    floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    check_tensor("logits", logits, 3, floating)
    check_tensor("boxes", boxes, 3, floating)
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            f"boxes must have shape {(*logits.shape[:2], 4)} to go with logits "
            f"{tuple(logits.shape)}, got {tuple(boxes.shape)}"
        )
    check_same_device(logits=logits, boxes=boxes)
    lists = {"gt_boxes": gt_boxes, "gt_classes": gt_classes, "image_sizes": image_sizes}
    for name, values in lists.items():
        if len(values) != len(logits):
            raise ValueError(f"{name} must be of {len(logits)} images, got {len(values)}")


def _class_costs(logits: Tensor, activation: str, alpha: float, gamma: float) -> Tensor:
    """(N, Q, C): focal loss as a positive less that as a negative; of a softmax -probability."""
    if activation == "softmax":
        return -logits.softmax(dim=2)
    positive = alpha * (1 - logits.sigmoid()) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)
    return positive - negative


def _distances(
    predicted: Tensor, target: Tensor, image_size: tuple[int, int], activation: str
) -> Tensor:
    """(Q, M) L1 distances of boxes in units of the image's width and height."""
    if activation == "softmax":
        predicted, target = _centers_and_sides(predicted), _centers_and_sides(target)
    height, width = image_size
    # Sides one after the other: a matrix for each, rather than four times as much at once.
    return sum(
        (predicted[:, side, None] - target[:, side]).abs() / extent
        for side, extent in enumerate((width, height, width, height))
    )


def _centers_and_sides(boxes: Tensor) -> Tensor:
    """(M, 4) x, y, width, height of boxes XYXY."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
