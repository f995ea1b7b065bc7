"""ATSS (Zhang et al. 2020, https://arxiv.org/abs/1912.02424)."""

from functools import partial
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform

from corrdet.config_keys import declare
from corrdet.matching import atss_matching
from corrdet.options import Key, at_least, default_of

from .detector import MatchImages
from .one_prior import OnePriorDetector

declare(
    "MODEL.ATSS",
    "ATSS (Zhang et al. 2020, Alg. 1)",
    TOPK=Key(
        default_of(atss_matching, "topk"), at_least(1), "candidates of a ground truth in a level"
    ),
)


@META_ARCH_REGISTRY.register()
class CorrdetATSS(OnePriorDetector):
    """A ground truth trains the near anchors whose IoU stands out among them."""

    sections = ("MODEL.DENSE", "MODEL.ATSS")

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node = cfg.MODEL.DENSE
        parts = cls.parts(
            cfg,
            prior_side=node.ANCHOR_SCALE,
            box_coding=Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            has_scales=True,
            scales_per_octave=node.SCALES_PER_OCTAVE,
        )
        matching = partial(atss_matching, topk=cfg.MODEL.ATSS.TOPK)
        return parts | {"matcher": MatchImages(matching, node.NUM_CLASSES)}
