"""ATSS (Zhang et al. 2020, https://arxiv.org/abs/1912.02424)."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from corrdet.matching import atss_matching

from .dense import CorrdetDenseDetector, expect


class OneAnchorDetector(CorrdetDenseDetector):
    """ATSS and PAA: one square anchor for each location, RetinaNet's deltas. Keys: MODEL.DENSE."""

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        node = cfg.MODEL.DENSE
        expect(node.ANCHOR_SCALE > 0, "DENSE.ANCHOR_SCALE", "> 0", node.ANCHOR_SCALE)
        weights = node.BBOX_REG_WEIGHTS
        valid = len(weights) == 4 and all(weight > 0 for weight in weights)
        expect(valid, "DENSE.BBOX_REG_WEIGHTS", "four positive numbers", weights)

    @classmethod
    def box_coding(cls, cfg) -> tuple[float, object, bool]:
        node = cfg.MODEL.DENSE
        return node.ANCHOR_SCALE, Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS), True


@META_ARCH_REGISTRY.register()
class CorrdetATSS(OneAnchorDetector):
    """A ground truth trains the near anchors whose IoU stands out among them.

    Keys: MODEL.DENSE and MODEL.ATSS.
    """

    @configurable
    def __init__(self, *, topk: int, **kwargs):
        """
        Args:
            topk: candidates of a ground truth in a level.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        self.topk = topk

    @classmethod
    def from_config(cls, cfg) -> dict:
        return super().from_config(cfg) | {"topk": cfg.MODEL.ATSS.TOPK}

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        expect(cfg.MODEL.ATSS.TOPK >= 1, "ATSS.TOPK", ">= 1", cfg.MODEL.ATSS.TOPK)

    def match(
        self, priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        return atss_matching(priors, gt_boxes, gt_classes, counts, self.num_classes, self.topk)
