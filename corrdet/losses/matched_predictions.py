"""The one type that every loss reads, whatever the detector."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from corrdet.activation import ACTIVATIONS, BACKGROUND_LOGITS, PROBABILITIES
from corrdet.ops import elementwise_iou


@dataclass
class MatchedPredictions:
    """The predictions of a batch together with what matching assigned to them.

    Letters: S samples (anchors, locations or proposals of all images), C classes, P positives.
    Floating-point tensors narrower than float32 are widened, so losses never run in half precision.

    Attributes:
        logits: (S, C) for sigmoid heads; (S, C + 1) with the background last for softmax heads.
        labels: (S,) int64; 0..C-1 the class of a positive, C background, -1 ignored.
        positives: (P,) int64, the indices into the samples of those with a class, ascending.
        boxes: (P, 4) decoded predicted boxes of the positives, XYXY in pixels, carrying gradient.
        gt_boxes: (P, 4) the ground-truth boxes that they are matched with.
        image_ids: (P,) int64, position in the batch of the image that each positive belongs to.
        deltas: (P, 4) the box regression as predicted, or None where the detector has none.
        gt_deltas: (P, 4) its target, or None.
        activation: "sigmoid" or "softmax".
        mask_ious: (P,) IoU of each positive's predicted mask and its ground truth, without
            gradient, where masks and not boxes say how well a positive is localized; or None.
        priors: (P, 4) the boxes that the positives regress from, XYXY in pixels, or None where the
            detector has none.
        levels: (P,) int64, the level of the pyramid that each positive is on, or None.
        num_images, num_levels: of the batch; None to count them, which waits for the device. Losses
            of each image need num_images, and samples that are image by image, as many of each.

    Raises:
        ValueError: shapes that do not fit together, positives out of order, images or levels that
            are not counted from 0, an unknown activation.
    """

    logits: Tensor
    labels: Tensor
    positives: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    image_ids: Tensor
    deltas: Tensor | None = None
    gt_deltas: Tensor | None = None
    activation: str = "sigmoid"
    mask_ious: Tensor | None = None
    priors: Tensor | None = None
    levels: Tensor | None = None
    num_images: int | None = None
    num_levels: int | None = None

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if self.logits.dim() != 2:
            raise ValueError(f"logits must be (S, C), got shape {tuple(self.logits.shape)}")
        num_samples, num_positives = len(self.logits), len(self.positives)
        expected = {
            "labels": (num_samples,),
            "positives": (num_positives,),
            "boxes": (num_positives, 4),
            "gt_boxes": (num_positives, 4),
            "image_ids": (num_positives,),
            "deltas": (num_positives, 4),
            "gt_deltas": (num_positives, 4),
            "mask_ious": (num_positives,),
            "priors": (num_positives, 4),
            "levels": (num_positives,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        # On a GPU values would have to be waited for.
        if self.positives.device.type == "cpu" and (self.positives.diff() <= 0).any():
            raise ValueError("positives must be ascending")
        for name, count in (("image_ids", "num_images"), ("levels", "num_levels")):
            _check_positions(name, getattr(self, name), count, getattr(self, count))
        for name in (
            "logits", "boxes", "gt_boxes", "deltas", "gt_deltas", "mask_ious", "priors"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, value.float())

    @property
    def num_classes(self) -> int:
        """C, without the background."""
        return self.logits.shape[1] - BACKGROUND_LOGITS[self.activation]

    @cached_property
    def classes(self) -> Tensor:
        """(P,) int64, the ground-truth class of each positive."""
        return self.labels[self.positives]

    @cached_property
    def binary_labels(self) -> Tensor:
        """(S, C) int8: 1 for the class of a positive, -1 in the rows of ignored samples, else 0."""
        ignored = (self.labels < 0).to(torch.int8).neg()
        labels = ignored[:, None].repeat(1, self.num_classes)
        labels[self.positives, self.classes] = 1
        return labels

    @cached_property
    def probabilities(self) -> Tensor:
        """(P, C) or, of softmax heads, (P, C + 1): of every class, with gradient to the logits."""
        return PROBABILITIES[self.activation](self.logits[self.positives])

    @cached_property
    def scores(self) -> Tensor:
        """(P,) the score of each positive's ground-truth class, with gradient to the logits."""
        return self.probabilities.gather(1, self.classes[:, None])[:, 0]

    @cached_property
    def max_scores(self) -> Tensor:
        """(P,) the highest score of any class of each positive, with gradient to the logits."""
        return self.probabilities[:, : self.num_classes].amax(dim=1)

    @cached_property
    def box_ious(self) -> Tensor:
        """(P,) IoU of each positive's predicted box and its ground truth, with gradient to the box.

        What localization losses read: they train boxes.
        """
        return elementwise_iou(self.boxes, self.gt_boxes)

    @cached_property
    def centerness(self) -> Tensor:
        """(P,) how near the centre of each positive's prior is to that of its ground truth.

        Raises:
            ValueError: there are no priors.
        """
        if self.priors is None:
            raise ValueError("these MatchedPredictions have no priors, of which centerness is")
        return centerness(self.priors, self.gt_boxes)

    @property
    def delta_pairs(self) -> tuple[Tensor, Tensor]:
        """(P, 4) deltas as predicted, and (P, 4) their targets.

        Raises:
            ValueError: there are none.
        """
        if self.deltas is None or self.gt_deltas is None:
            raise ValueError("these MatchedPredictions have no deltas and gt_deltas")
        return self.deltas, self.gt_deltas

    @property
    def ious(self) -> Tensor:
        """(P,) how well each positive is localized: ``mask_ious`` where given, else ``box_ious``.

        A loss that must not train the box branch detaches it.
        """
        return self.box_ious if self.mask_ious is None else self.mask_ious

    def groups(self, over: str) -> tuple[Tensor, int]:
        """(P,) int64, which image or level each positive is of, and how many there are.

        Args:
            over: "image" or "level".

        Raises:
            ValueError: there are no levels.
        """
        ids, count = self.image_ids, self.num_images
        if over == "level":
            if self.levels is None:
                raise ValueError("these MatchedPredictions have no levels")
            ids, count = self.levels, self.num_levels
        if count is None:
            count = int(ids.max()) + 1 if len(ids) else 0
        return ids, count


def centerness(priors: Tensor, gt_boxes: Tensor) -> Tensor:
    """How near a location is to the centre of its ground truth (Tian et al. 2019, Eq. 3).

    Args:
        priors: (P, 4) boxes, XYXY, whose centres are the locations.
        gt_boxes: (P, 4) boxes, XYXY, the ground truth of each.

    Returns:
        (P,) 1 at the centre, 0 at the sides and outside.
    """
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    to_start, to_end = centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers
    shorter, longer = torch.minimum(to_start, to_end), torch.maximum(to_start, to_end)
    inside = (shorter > 0).all(dim=1)
    return torch.where(inside, (shorter / longer).prod(dim=1), 0.0).sqrt()


def _check_positions(name: str, positions: Tensor | None, count_name: str, count: Any) -> None:
    """Raise a ValueError for positions that are no whole numbers from 0 to count - 1."""
    is_count = isinstance(count, int | torch.SymInt) and not isinstance(count, bool)
    if count is not None and not (is_count and count >= 0):
        raise ValueError(f"{count_name} must be an integer >= 0 or None, got {count!r}")
    if positions is None:
        return
    if positions.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {positions.dtype}")
    if positions.device.type == "cpu" and len(positions):
        least, most = positions.aminmax()
        if least < 0 or (count is not None and most >= count):
            raise ValueError(
                f"{name} must be from 0 to {count_name} - 1, got {int(least)} to {int(most)}"
                + (f" with {count_name} {count}" if count is not None else "")
            )
