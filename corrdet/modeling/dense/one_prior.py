"""Detectors with square priors, mostly one for each location: FCOS and those after it."""

from typing import Any

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.options import (
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    Key,
    at_least,
    default_of,
    numbers,
    one_of,
)

from ..core.config_checks import NORM, build_features
from ..core.training import BatchPositives
from .detector import DenseDetector, DenseHead
from .inference import Inference
from .priors import square_priors
from .quality import QUALITIES, QualityBranch

declare(
    "MODEL.DENSE",
    "detectors with one prior for each location",
    NUM_CLASSES=Key(80, at_least(1), "classes of the data"),
    IN_FEATURES=Key(
        ["p3", "p4", "p5", "p6", "p7"], line="outputs of the backbone, from the largest"
    ),
    NUM_CONVS=Key(4, at_least(1), "convolutions of each tower"),
    NORM=Key(
        default_of(DenseHead, "norm"),
        NORM,
        "norm of the towers (none in RetinaNet; GroupNorm since FCOS)",
    ),
    PRIOR_PROB=Key(
        default_of(DenseHead, "prior_prob"),
        PROBABILITY,
        "what all scores are before training (RetinaNet)",
    ),
    QUALITY=Key(
        "",
        one_of(("", *QUALITIES)),
        "a third branch of the head: 'centerness' (FCOS, Eq. 3; ATSS) or 'iou' (PAA, Sec. "
        "3.3, with the weight 0.5); '' as in the papers implemented here, which go without",
    ),
    QUALITY_WEIGHT=Key(1.0, NOT_NEGATIVE, "weight of the third branch's loss"),
    ANCHOR_SCALE=Key(8.0, POSITIVE, "of ATSS and PAA: side of the anchors in strides"),
    SCALES_PER_OCTAVE=Key(
        1,
        at_least(1),
        "of ATSS and PAA: anchors of a location, with sides up to twice the one that ANCHOR_SCALE "
        "says; 3 for RS loss, 2 for the (512) detectors of aLRP and APE loss, both with "
        "ANCHOR_SCALE 4",
    ),
    BBOX_REG_WEIGHTS=Key(
        (10.0, 10.0, 5.0, 5.0), numbers(4), "of ATSS and PAA: weights of the deltas (ATSS, 4.1)"
    ),
    SCORE_THRESH_TEST=Key(
        Inference.score_threshold,
        line="detections have a higher score; with a third branch, geometric mean with its output",
    ),
    TOPK_CANDIDATES_TEST=Key(
        Inference.topk, at_least(1), "of each level, so many at most enter NMS"
    ),
    NMS_THRESH_TEST=Key(
        Inference.nms_threshold, SHARE, "NMS removes boxes with a higher IoU than this"
    ),
)


class OnePriorDetector(DenseDetector):
    """A detector of ``MODEL.DENSE``; its module says priors, box coding and matcher."""

    num_classes_key = "MODEL.DENSE.NUM_CLASSES"
    sections = ("MODEL.DENSE",)
    # Of QUALITIES, those that the positives of this detector have.
    qualities: tuple[str, ...] = QUALITIES

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        quality = cfg.MODEL.DENSE.QUALITY
        if quality and quality not in cls.qualities:
            raise ConfigError(
                f"MODEL.DENSE.QUALITY: {cls.__name__} has no {quality}, as its positives may "
                f"lie outside of their ground truth; it can have {' or '.join(cls.qualities)}"
            )
        if quality and cfg.TEST.IMAGE_BOUNDS:
            raise ConfigError(
                f"TEST.IMAGE_BOUNDS permutes scores, which with MODEL.DENSE.QUALITY {quality!r} "
                "are products of two: expected one of them unset"
            )

    @classmethod
    def parts(
        cls, cfg, *, prior_side: float, box_coding, has_scales: bool, scales_per_octave: int = 1
    ) -> dict[str, Any]:
        """Arguments of the constructor, all but the matcher.

        Args:
            cfg: the config.
            prior_side: of the square priors, in strides; of several, the smallest one's.
            box_coding: with the interface of Detectron2's transforms.
            has_scales: whether the head has a learned factor of the deltas for each level.
            scales_per_octave: priors of a location, see :func:`square_priors`.
        """
        criterion = cls.build_criterion(cfg)
        backbone, shapes = build_features(cfg, "MODEL.DENSE.IN_FEATURES")
        node = cfg.MODEL.DENSE
        head = DenseHead(
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            num_anchors=scales_per_octave,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
            has_quality=bool(node.QUALITY),
            has_scales=has_scales,
        )
        strides = [shape.stride for shape in shapes]
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": square_priors(
                strides, [prior_side * s for s in strides], scales_per_octave=scales_per_octave
            ),
            "box2box_transform": box_coding,
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "normalizer": BatchPositives(),
            "inference": Inference.from_config(cfg, node),
            "branch": QualityBranch(node.QUALITY, node.QUALITY_WEIGHT) if node.QUALITY else None,
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }
