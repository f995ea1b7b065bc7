"""From scores and boxes to detections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .score_voting import score_voting


class Candidates(NamedTuple):
    """Boxes of an image that may be detections.

    Attributes:
        boxes: (K, 4) XYXY in pixels.
        scores: (K,).
        classes: (K,) int64.
        priors: (K,) int64, which of the image's priors they come from.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    priors: Tensor

    def as_instances(self, image_size: tuple[int, int]) -> Instances:
        """In Detectron2's form; ``image_size``: (height, width)."""
        return Instances(
            image_size,
            pred_boxes=Boxes(self.boxes),
            scores=self.scores,
            pred_classes=self.classes,
        )


@dataclass
class Inference:
    """How detections are chosen.

    Attributes:
        score_threshold: detections have a higher score than this.
        topk: so many at most enter NMS.
        nms_threshold: NMS removes boxes with a higher IoU than this.
        max_detections: of an image, after NMS.
        topk_per_level: whether ``topk`` is of each level, or of the image.
        nms: function of boxes, scores, classes and the threshold, to the indices that are kept,
            from the highest score.
        vote: whether boxes are moved by :func:`score_voting` after NMS.
    """

    score_threshold: float = 0.05
    topk: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    topk_per_level: bool = True
    nms: Callable[[Tensor, Tensor, Tensor, float], Tensor] = batched_nms
    vote: bool = False

    @classmethod
    def from_config(cls, cfg, node, **options: Any) -> "Inference":
        """As the config has it.

        Args:
            cfg: has ``TEST.DETECTIONS_PER_IMAGE``.
            node: the detector's, with the keys ``SCORE_THRESH_TEST``, ``TOPK_CANDIDATES_TEST`` and
                ``NMS_THRESH_TEST``, which Detectron2's RetinaNet has as well.
            options: attributes that no key says.
        """
        return cls(
            score_threshold=node.SCORE_THRESH_TEST,
            topk=node.TOPK_CANDIDATES_TEST,
            nms_threshold=node.NMS_THRESH_TEST,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            **options,
        )

    def candidates(
        self,
        priors: Sequence[Tensor],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        box_coding,
    ) -> Candidates:
        """What enters NMS: the best scores above the threshold, decoded.

        Args:
            priors: of an image, per level (R, 4).
            scores: per level (R, C).
            deltas: per level (R, 4).
            box_coding: with the interface of Detectron2's transforms.
        """
        if not self.topk_per_level:
            priors, scores, deltas = ([torch.cat(list(x))] for x in (priors, scores, deltas))
        levels, start = [], 0
        for level in zip(priors, scores, deltas, strict=True):
            levels.append(self._level_candidates(*level, box_coding, start))
            start += level[0].shape[0]  # not len, which export takes as a constant
        return Candidates(*(torch.cat(values) for values in zip(*levels, strict=True)))

    def _level_candidates(
        self, priors: Tensor, scores: Tensor, deltas: Tensor, box_coding, start: int
    ) -> Candidates:
        num_classes = scores.shape[1]
        scores = scores.flatten()
        kept = torch.nonzero(scores > self.score_threshold)[:, 0]
        scores, order = scores[kept].sort(descending=True)
        scores, kept = scores[: self.topk], kept[order][: self.topk]
        indices = kept // num_classes
        boxes = box_coding.apply_deltas(deltas[indices], priors[indices])
        return Candidates(boxes, scores, kept % num_classes, indices + start)

    def select(self, candidates: Candidates) -> Candidates:
        """The detections: NMS within each class, and the best of what is left."""
        boxes, scores, classes, _ = candidates
        keep = self.nms(boxes, scores, classes, self.nms_threshold)[: self.max_detections]
        kept = Candidates(*(values[keep] for values in candidates))
        if not self.vote:
            return kept
        return kept._replace(boxes=score_voting(kept.boxes, kept.classes, boxes, scores, classes))
