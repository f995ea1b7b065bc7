"""SSD (Liu et al. 2016, https://arxiv.org/abs/1512.02325) and DSSD (Fu et al. 2017)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from corrdet.activation import activation_keys, num_logits
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.matching import ssd_matching
from corrdet.options import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    Key,
    Range,
    at_least,
    default_of,
    numbers,
)

from ..core.config_checks import NORM, build_features
from ..core.training import BatchPositives
from ..dense.detector import DenseDetector, MatchImages
from ..dense.inference import Inference
from .heads import DSSDHead, SSDHead
from .mining import MinedMatcher
from .priors import default_boxes


def _are_scales(value: Any) -> bool:
    return numbers(2).holds(value) and value[0] <= value[1]


# Defaults are those of SSD300 on VOC.
declare(
    "MODEL.SSD",
    "SSD (Liu et al. 2016), and what DSSD and RefineDet have in common with it",
    NUM_CLASSES=Key(80, at_least(1), "classes of the data"),
    IN_FEATURES=Key(
        ["p3", "p4", "p5", "p6", "p7", "p8"], line="outputs of the backbone, from the largest"
    ),
    NUM_EXTRA_LEVELS=Key(
        3,
        at_least(0),
        "of build_ssd_resnet_fpn_backbone and build_ssd_resnet_backbone: levels after the last one "
        "of the pyramid or of the ResNet",
    ),
    EXTRA_CHANNELS=Key(512, at_least(2), "channels of the extra levels of the latter"),
    NORM=Key(
        "GN",
        NORM,
        "norm of the stages of build_ssd_resnet_backbone and of the heads of DSSD and RefineDet; "
        "those of SSD have none; as published, DSSD has 'BN', RefineDet none",
    ),
    **activation_keys("softmax"),
    IMAGE_SIZE=Key(
        300, POSITIVE, "of the default boxes (Sec. 2.2 and 3.1): side of the images they are for"
    ),
    FIRST_SCALE=Key(0.1, POSITIVE, "scale of the first level, as a share of the image"),
    SCALES=Key(
        (0.2, 0.9),
        Range("the smallest and the largest scale", _are_scales),
        "least and largest scale of the other levels (Eq. 4), as shares of the image",
    ),
    ASPECT_RATIOS=Key(
        [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]],
        line="aspect ratios of each level, or one list for all, without 1 and without inverses",
    ),
    BBOX_REG_WEIGHTS=Key(
        (10.0, 10.0, 5.0, 5.0),
        numbers(4),
        "weights of the deltas: the inverse of the 'variances' of the authors' code",
    ),
    IOU_THRESHOLD=Key(
        default_of(ssd_matching, "iou_threshold"),
        SHARE_BELOW_1,
        "a prior is positive above this IoU (Sec. 2.2, 'Matching strategy')",
    ),
    NEGATIVES_PER_POSITIVE=Key(
        3.0,
        NOT_NEGATIVE,
        "negatives of an image that are trained on (Sec. 2.2, 'Hard negative mining'); 0 for all "
        "of them, as focal and ranking losses want it",
    ),
    SCORE_THRESH_TEST=Key(0.01, line="detections have a higher score than this (Sec. 3)"),
    TOPK_CANDIDATES_TEST=Key(
        1000,
        at_least(1),
        "of each level, so many at most enter NMS; those of the papers are 400 of each class, and "
        "their TEST.DETECTIONS_PER_IMAGE is 200",
    ),
    NMS_THRESH_TEST=Key(0.45, SHARE, "NMS removes boxes with a higher IoU than this"),
)

declare(
    "MODEL.DSSD",
    "DSSD (Fu et al. 2017), beside MODEL.SSD",
    DECONVOLUTION_CHANNELS=Key(512, at_least(4), "channels of the deconvolution modules (Fig. 3)"),
    PREDICTION_CHANNELS=Key(1024, at_least(4), "channels of the prediction modules (Fig. 2, c)"),
)


class SSDFamily(DenseDetector):
    """Detectors of ``MODEL.SSD``: several priors at a location, matched by IoU, mined negatives."""

    num_classes_key = "MODEL.SSD.NUM_CLASSES"
    sections = ("MODEL.SSD",)
    activation_key = "MODEL.SSD.ACTIVATION"

    @classmethod
    def parts(
        cls,
        cfg,
        build_priors: Callable[[list[int]], DefaultAnchorGenerator],
        build_head: Callable[..., nn.Module],
    ) -> dict[str, Any]:
        """Arguments of the constructor, all but the matcher and the branch.

        Args:
            cfg: the config.
            build_priors: from the strides of the levels to the generator of their priors.
            build_head: from keywords to the head: ``input_shape``, the shapes of the levels, and
                what :class:`SSDHead` takes beside channels.
        """
        criterion = cls.build_criterion(cfg)
        backbone, shapes = build_features(cfg, "MODEL.SSD.IN_FEATURES")
        node = cfg.MODEL.SSD
        priors = build_priors([shape.stride for shape in shapes])
        head = build_head(
            input_shape=shapes,
            num_priors=priors.num_anchors,
            num_logits=num_logits(node.ACTIVATION, node.NUM_CLASSES),
            prior_prob=node.PRIOR_PROB if node.ACTIVATION == "sigmoid" else None,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": priors,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "normalizer": BatchPositives(),
            "inference": Inference.from_config(cfg, node),
            "activation": node.ACTIVATION,
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }


def check_default_boxes(cfg) -> None:
    """
    Raises:
        ConfigError: default boxes of SSD that do not go with its levels.
    """
    node = cfg.MODEL.SSD
    levels = len(node.IN_FEATURES)
    if levels < 3:
        raise ConfigError(
            f"MODEL.SSD.IN_FEATURES must be three levels or more, got {node.IN_FEATURES!r}"
        )
    ratios = node.ASPECT_RATIOS
    if len(ratios) not in (1, levels) or not all(map(numbers().holds, ratios)):
        raise ConfigError(
            f"MODEL.SSD.ASPECT_RATIOS must be lists of positive numbers for all or for each of "
            f"{levels} levels, got {ratios!r}"
        )


def ssd_priors(cfg, strides: Sequence[int]) -> DefaultAnchorGenerator:
    """The default boxes of a config, of levels with these strides."""
    node = cfg.MODEL.SSD
    return default_boxes(
        strides, node.IMAGE_SIZE, node.FIRST_SCALE, *node.SCALES, node.ASPECT_RATIOS
    )


def ssd_matcher(cfg) -> MinedMatcher:
    """SSD's matching, with hard negative mining."""
    node = cfg.MODEL.SSD
    matching = partial(ssd_matching, iou_threshold=node.IOU_THRESHOLD)
    return MinedMatcher(
        MatchImages(matching, node.NUM_CLASSES, by_level=False),
        node.ACTIVATION,
        node.NEGATIVES_PER_POSITIVE,
    )


@META_ARCH_REGISTRY.register()
class CorrdetSSD(SSDFamily):
    """Default boxes of several shapes at each location."""

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        check_default_boxes(cfg)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        def build_head(input_shape: list[ShapeSpec], **predictors) -> SSDHead:
            return SSDHead(channels=[shape.channels for shape in input_shape], **predictors)

        return cls.parts(cfg, partial(ssd_priors, cfg), build_head) | {"matcher": ssd_matcher(cfg)}


@META_ARCH_REGISTRY.register()
class CorrdetDSSD(SSDFamily):
    """SSD whose levels know of the deeper ones, and have a residual block before they predict.

    See https://arxiv.org/abs/1701.06659.
    """

    sections = ("MODEL.SSD", "MODEL.DSSD")
    any_image_size = False

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        check_default_boxes(cfg)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        build_head = partial(
            DSSDHead,
            deconvolution_channels=cfg.MODEL.DSSD.DECONVOLUTION_CHANNELS,
            prediction_channels=cfg.MODEL.DSSD.PREDICTION_CHANNELS,
            norm=cfg.MODEL.SSD.NORM,
        )
        return cls.parts(cfg, partial(ssd_priors, cfg), build_head) | {"matcher": ssd_matcher(cfg)}
