"""FoveaBox (Kong et al. 2020, https://arxiv.org/abs/1904.03797)."""

from functools import partial
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

from corrdet.config_keys import declare
from corrdet.matching import foveabox_matching
from corrdet.options import POSITIVE, Key, Range, default_of, is_number

from .box_coding import FoveaTransform
from .detector import MatchImages
from .one_prior import OnePriorDetector
from .priors import open_ranges

declare(
    "MODEL.FOVEABOX",
    "FoveaBox (Kong et al. 2020, Sec. III)",
    BASE_SCALE=Key(4.0, POSITIVE, "basic scale of the objects of a level, in strides"),
    ETA=Key(
        2.0,
        Range(">= 1", lambda v: is_number(v) and v >= 1),
        "a level is for objects of 1 / eta to eta times its basic scale",
    ),
    SIGMA=Key(
        default_of(foveabox_matching, "sigma"),
        Range("in (0, 1]", lambda v: is_number(v) and 0 < v <= 1),
        "sides of the part of a box that is positive, over those of the box",
    ),
)


@META_ARCH_REGISTRY.register()
class CorrdetFoveaBox(OnePriorDetector):
    """Locations in the middle of a ground truth regress log distances, on the levels for its size.

    The first and the last level are open.
    """

    sections = ("MODEL.DENSE", "MODEL.FOVEABOX")

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node = cfg.MODEL.FOVEABOX
        # In the authors' configs the unit of the distances is half of the basic scale: about the
        # distance from the centre of an object of that scale to its sides.
        parts = cls.parts(
            cfg, prior_side=node.BASE_SCALE / 2, box_coding=FoveaTransform(), has_scales=False
        )
        scales = [node.BASE_SCALE * stride for stride in parts["anchor_generator"].strides]
        matching = partial(
            foveabox_matching,
            scale_ranges=open_ranges([(s / node.ETA, s * node.ETA) for s in scales]),
            sigma=node.SIGMA,
        )
        return parts | {"matcher": MatchImages(matching, parts["num_classes"])}
