"""FoveaBox (Kong et al. 2020, https://arxiv.org/abs/1904.03797)."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from corrdet.matching import foveabox_matching

from .box_transforms import FoveaTransform
from .dense import CorrdetDenseDetector, expect
from .fcos import open_ranges


@META_ARCH_REGISTRY.register()
class CorrdetFoveaBox(CorrdetDenseDetector):
    """Locations in the middle of a ground truth regress log distances, on the levels for its size.

    Keys: MODEL.DENSE and MODEL.FOVEABOX.
    """

    @configurable
    def __init__(self, *, base_scale: float, eta: float, sigma: float, **kwargs):
        """
        Args:
            base_scale: basic scale of the objects of a level, in strides.
            eta: a level is for objects of 1 / eta to eta times its basic scale. The first and the
                last level are open.
            sigma: sides of the fovea over those of the ground truth.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        scales = [base_scale * stride for stride in self.strides]
        self.scale_ranges = open_ranges([(scale / eta, scale * eta) for scale in scales])
        self.sigma = sigma

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.FOVEABOX
        return super().from_config(cfg) | {
            "base_scale": node.BASE_SCALE,
            "eta": node.ETA,
            "sigma": node.SIGMA,
        }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        node = cfg.MODEL.FOVEABOX
        expect(node.BASE_SCALE > 0, "FOVEABOX.BASE_SCALE", "> 0", node.BASE_SCALE)
        expect(node.ETA >= 1, "FOVEABOX.ETA", ">= 1", node.ETA)
        expect(0 < node.SIGMA <= 1, "FOVEABOX.SIGMA", "in (0, 1]", node.SIGMA)

    @classmethod
    def box_coding(cls, cfg) -> tuple[float, object, bool]:
        # In the authors' configs the unit of the distances is half of the basic scale: about the
        # distance from the centre of an object of that scale to its sides.
        return cfg.MODEL.FOVEABOX.BASE_SCALE / 2, FoveaTransform(), False

    def match(
        self, priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        return foveabox_matching(
            priors,
            gt_boxes,
            gt_classes,
            counts,
            self.scale_ranges,
            self.num_classes,
            self.sigma,
        )
