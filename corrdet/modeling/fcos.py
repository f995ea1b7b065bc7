"""FCOS (Tian et al. 2019, https://arxiv.org/abs/1904.01355)."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor

from corrdet.matching import fcos_matching
from corrdet.names import unknown_name

from .box_transforms import FoveaTransform
from .dense import CorrdetDenseDetector, expect

BOX_CODINGS = ("linear", "exponential")


@META_ARCH_REGISTRY.register()
class CorrdetFCOS(CorrdetDenseDetector):
    """Locations in a ground truth regress the distances to its sides, on the level for its size.

    Priors are squares of one stride. The distances are in strides, and trained as decoded boxes
    only. Keys: MODEL.DENSE and MODEL.FCOS. With linear coding, GIoU loss and centerness, losses
    and detections are those of Detectron2's FCOS, but for its running normalizer.
    """

    has_deltas = False

    @configurable
    def __init__(self, *, regression_range: float, center_sampling_radius: float, **kwargs):
        """
        Args:
            regression_range: the largest distance that a level is for, in strides; the smallest is
                half of it. The first and the last level are open.
            center_sampling_radius: in strides; 0 for none.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        upper = [regression_range * stride for stride in self.strides]
        self.regression_ranges = open_ranges([(high / 2, high) for high in upper])
        self.center_sampling_radius = center_sampling_radius or None

    @classmethod
    def from_config(cls, cfg) -> dict:
        return super().from_config(cfg) | {
            "regression_range": cfg.MODEL.FCOS.REGRESSION_RANGE,
            "center_sampling_radius": cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS,
        }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        node = cfg.MODEL.FCOS
        expect(node.REGRESSION_RANGE > 0, "FCOS.REGRESSION_RANGE", "> 0", node.REGRESSION_RANGE)
        radius = node.CENTER_SAMPLING_RADIUS
        expect(radius >= 0, "FCOS.CENTER_SAMPLING_RADIUS", ">= 0", radius)
        if node.BOX_CODING not in BOX_CODINGS:
            raise ValueError(
                "MODEL.FCOS.BOX_CODING: " + unknown_name("coding", node.BOX_CODING, BOX_CODINGS)
            )

    @classmethod
    def box_coding(cls, cfg) -> tuple[float, object, bool]:
        if cfg.MODEL.FCOS.BOX_CODING == "linear":
            return 1.0, Box2BoxTransformLinear(normalize_by_size=True), False
        return 1.0, FoveaTransform(), True

    def match(
        self, priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        return fcos_matching(
            priors,
            gt_boxes,
            gt_classes,
            counts,
            self.regression_ranges,
            self.num_classes,
            self.center_sampling_radius,
        )


def open_ranges(ranges: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ranges of levels, of which the first one starts at 0 and the last one has no end."""
    lows, highs = (list(bounds) for bounds in zip(*ranges, strict=True))
    lows[0], highs[-1] = 0.0, float("inf")
    return list(zip(lows, highs, strict=True))
