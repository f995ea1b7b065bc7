"""FCOS (Tian et al. 2019, https://arxiv.org/abs/1904.01355)."""

from functools import partial
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransformLinear

from corrdet.config_keys import declare
from corrdet.matching import fcos_matching
from corrdet.options import NOT_NEGATIVE, POSITIVE, Key, one_of

from .box_coding import FoveaTransform
from .detector import MatchImages
from .one_prior import OnePriorDetector
from .priors import open_ranges

declare(
    "MODEL.FCOS",
    "FCOS (Tian et al. 2019)",
    REGRESSION_RANGE=Key(
        8.0,
        POSITIVE,
        "largest distance to a side of the box that a level regresses, in strides; the smallest is "
        "half of it (Sec. 3.2: 64 pixels on P3)",
    ),
    CENTER_SAMPLING_RADIUS=Key(
        1.5,
        NOT_NEGATIVE,
        "positives are nearer to the centre than so many strides; 0 for all in the box, as "
        "published first; 1.5 is Detectron2's, and FCOS's since Tian et al. 2020",
    ),
    BOX_CODING=Key(
        "linear",
        one_of(("linear", "exponential")),
        "'linear': distances are the positive parts of what the head gives, as in Detectron2; "
        "'exponential': its exponential, times a learned factor for each level (Sec. 3.2)",
    ),
)


@META_ARCH_REGISTRY.register()
class CorrdetFCOS(OnePriorDetector):
    """Locations in a ground truth regress the distances to its sides, on the level for its size.

    Priors are squares of one stride. The distances are in strides, and trained as decoded boxes
    only. With linear coding, GIoU loss and centerness, losses and detections are those of
    Detectron2's FCOS, but for its running normalizer.
    """

    sections = ("MODEL.DENSE", "MODEL.FCOS")
    regresses_deltas = False

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        node = cfg.MODEL.FCOS
        is_linear = node.BOX_CODING == "linear"
        coding = Box2BoxTransformLinear(normalize_by_size=True) if is_linear else FoveaTransform()
        parts = cls.parts(cfg, prior_side=1.0, box_coding=coding, has_scales=not is_linear)
        largest = [node.REGRESSION_RANGE * s for s in parts["anchor_generator"].strides]
        matching = partial(
            fcos_matching,
            regression_ranges=open_ranges([(high / 2, high) for high in largest]),
            center_sampling_radius=node.CENTER_SAMPLING_RADIUS or None,
        )
        return parts | {"matcher": MatchImages(matching, parts["num_classes"])}
