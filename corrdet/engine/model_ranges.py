"""What Detectron2's keys of models may be, checked where the config says that they are read.

The defaults are Detectron2's. What a network is made of is known of Detectron2's builders and ours;
backbones and heads that others have registered are not looked at.
"""

from detectron2.config import CfgNode
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    GeneralizedRCNN,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

from corrdet.errors import ConfigError
from corrdet.modeling.core.config_checks import NORM
from corrdet.names import config_value, unknown_name
from corrdet.options import (
    NOT_NEGATIVE,
    NUMBER,
    PROBABILITY,
    SHARE,
    SHARE_BELOW_1,
    Key,
    Range,
    at_least,
    is_whole,
    numbers,
    one_of,
)

from .ranges import POSITIVES, check_each, list_of


def _one_number_of(values: tuple[int, ...]) -> Range:
    return Range(f"one of {', '.join(map(str, values))}", lambda v: is_whole(v) and v in values)


_FEATURES = list_of(Range("", lambda v: isinstance(v, str)), "at least one name of a feature", 1)
_PER_LEVEL = Range(
    "a list of positive numbers, or one for each level",
    lambda v: POSITIVES.holds(v) or list_of(POSITIVES, "", 1).holds(v),
)
_THRESHOLDS = Range(
    "ascending numbers, each positive",
    lambda v: POSITIVES.holds(v) and list(v) == sorted(set(v)),
)
_LABELS = list_of(_one_number_of((-1, 0, 1)), "a list of 0, 1 and -1")
_POOLER = one_of(("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated"))
_PYRAMID = {
    "MODEL.FPN.IN_FEATURES": _FEATURES,
    "MODEL.FPN.OUT_CHANNELS": at_least(1),
    "MODEL.FPN.FUSE_TYPE": one_of(("sum", "avg")),
}
_RESNETS = {
    "MODEL.RESNETS.NUM_GROUPS": at_least(1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": at_least(1),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": at_least(1),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": at_least(1),
    "MODEL.RESNETS.RES5_DILATION": _one_number_of((1, 2)),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": at_least(1),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": Range(
        "four of True or False",
        lambda v: isinstance(v, list | tuple) and len(v) == 4 and all(x in (0, 1) for x in v),
    ),
}
_ANCHORS = {
    "MODEL.ANCHOR_GENERATOR.SIZES": _PER_LEVEL,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _PER_LEVEL,
    "MODEL.ANCHOR_GENERATOR.OFFSET": SHARE_BELOW_1,
}
# Detectors that have anchors of MODEL.ANCHOR_GENERATOR, and the features that these are on.
_ANCHORS_ON = {
    "RetinaNet": "MODEL.RETINANET.IN_FEATURES",
    "CorrdetRetinaNet": "MODEL.RETINANET.IN_FEATURES",
    "CorrdetYOLACT": "MODEL.YOLACT.IN_FEATURES",
}
_RPNS = ("RPN", "CorrdetRPN")
_STANDARD_HEADS = (
    "StandardROIHeads",
    "CascadeROIHeads",
    "CorrdetROIHeads",
    "CorrdetCascadeROIHeads",
)
_STAGES = ("res2", "res3", "res4", "res5")
# Backbones of Detectron2 by what MODEL.RESNETS.DEPTH says.
_DETECTRON2S = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
)
_DEPTHS = (18, 34, 50, 101, 152)


_BOX_LOSS = one_of(("smooth_l1", "giou", "diou", "ciou"))
_RETINANET = {
    "NUM_CLASSES": at_least(1),
    "IN_FEATURES": _FEATURES,
    "NUM_CONVS": at_least(0),
    "IOU_THRESHOLDS": _THRESHOLDS,
    "IOU_LABELS": _LABELS,
    "PRIOR_PROB": PROBABILITY,
    "SCORE_THRESH_TEST": NUMBER,
    "TOPK_CANDIDATES_TEST": at_least(1),
    "NMS_THRESH_TEST": SHARE,
    "BBOX_REG_WEIGHTS": numbers(4),
    "NORM": NORM,
}
_RPN = {
    "IN_FEATURES": _FEATURES,
    "IOU_THRESHOLDS": _THRESHOLDS,
    "IOU_LABELS": _LABELS,
    "BATCH_SIZE_PER_IMAGE": at_least(1),
    "POSITIVE_FRACTION": SHARE,
    "BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "BBOX_REG_LOSS_WEIGHT": NOT_NEGATIVE,
    "BBOX_REG_WEIGHTS": numbers(4),
    "SMOOTH_L1_BETA": NOT_NEGATIVE,
    "LOSS_WEIGHT": NOT_NEGATIVE,
    "PRE_NMS_TOPK_TRAIN": at_least(1),
    "PRE_NMS_TOPK_TEST": at_least(1),
    "POST_NMS_TOPK_TRAIN": at_least(1),
    "POST_NMS_TOPK_TEST": at_least(1),
    "NMS_THRESH": SHARE,
    "CONV_DIMS": list_of(
        Range("", lambda v: is_whole(v) and (v == -1 or v >= 1)),
        "at least one number of channels, or -1 for those of the input",
        1,
    ),
}
_ROI_HEADS = {
    "NUM_CLASSES": at_least(1),
    "IN_FEATURES": _FEATURES,
    "IOU_THRESHOLDS": _THRESHOLDS,
    "IOU_LABELS": _LABELS,
    "BATCH_SIZE_PER_IMAGE": at_least(1),
    "POSITIVE_FRACTION": SHARE,
    "SCORE_THRESH_TEST": NUMBER,
    "NMS_THRESH_TEST": SHARE,
}
_POOLED = {
    "POOLER_RESOLUTION": at_least(1),
    "POOLER_SAMPLING_RATIO": at_least(0),
    "POOLER_TYPE": _POOLER,
}
_CONVOLVED = {"NUM_CONV": at_least(0), "CONV_DIM": at_least(1), "NORM": NORM}
_BOX_HEAD = {
    "BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "BBOX_REG_LOSS_WEIGHT": NOT_NEGATIVE,
    "BBOX_REG_WEIGHTS": numbers(4),
    "SMOOTH_L1_BETA": NOT_NEGATIVE,
    "NUM_FC": at_least(0),
    "FC_DIM": at_least(1),
    **_CONVOLVED,
    **_POOLED,
}
_MASK_HEAD = {**_CONVOLVED, **_POOLED}
_KEYPOINT_HEAD = {
    "NUM_KEYPOINTS": at_least(1),
    "MIN_KEYPOINTS_PER_IMAGE": at_least(0),
    "CONV_DIMS": list_of(at_least(1), "whole numbers >= 1"),
    "LOSS_WEIGHT": NOT_NEGATIVE,
    **_POOLED,
}


def check_network(cfg: CfgNode) -> None:
    """Check what backbones on ResNets and anchors are made of, where the config has them.

    Raises:
        ConfigError: a value that no network can have, or two that do not go together.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in _DETECTRON2S or name.startswith("build_") and "resnet10_" in name:
        check_each(cfg, _RESNETS)
        _check_groups(cfg)
        has_pyramid = name.endswith("_fpn_backbone")
        if has_pyramid:
            check_each(cfg, _PYRAMID)
            key, stages = "MODEL.FPN.IN_FEATURES", _STAGES
            if name in _DETECTRON2S:
                _check_features(cfg, "MODEL.RESNETS.OUT_FEATURES", ("stem", *_STAGES))
                stages = tuple(f for f in _STAGES if f in cfg.MODEL.RESNETS.OUT_FEATURES)
            features = _check_features(cfg, key, stages)
            if "".join(features) not in "".join(_STAGES):
                raise ConfigError(
                    f"{key} must be stages that follow each other, such as "
                    f"('res3', 'res4', 'res5'), got {features!r}"
                )
        elif name in _DETECTRON2S:
            _check_features(cfg, "MODEL.RESNETS.OUT_FEATURES", ("stem", *_STAGES))
    if name in _DETECTRON2S:
        _check_depth(cfg)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture in ("RetinaNet", "CorrdetRetinaNet"):
        _check_section(cfg, "MODEL.RETINANET", _RETINANET)
        if cfg.MODEL.RETINANET.NORM in ("BN", "SyncBN") and not cfg.MODEL.RETINANET.NUM_CONVS:
            raise ConfigError(
                "MODEL.RETINANET.NUM_CONVS must be >= 1 with MODEL.RETINANET.NORM "
                f"{cfg.MODEL.RETINANET.NORM!r}, got 0"
            )
    elif issubclass(META_ARCH_REGISTRY.get(architecture), GeneralizedRCNN):
        _check_rcnn(cfg)
    _check_anchors(cfg)


def _check_section(cfg: CfgNode, section: str, ranges: dict[str, Range]) -> None:
    check_each(cfg, {f"{section}.{name}": range_ for name, range_ in ranges.items()})
    if "IOU_LABELS" in ranges:
        node = config_value(cfg, section)
        if len(node.IOU_LABELS) != len(node.IOU_THRESHOLDS) + 1:
            raise ConfigError(
                f"{section}.IOU_LABELS must be one more than IOU_THRESHOLDS "
                f"{list(node.IOU_THRESHOLDS)}, got {list(node.IOU_LABELS)}"
            )


def _check_rcnn(cfg: CfgNode) -> None:
    generator, heads = cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME
    names = {
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    }
    if generator in _RPNS:
        _check_section(cfg, "MODEL.RPN", _RPN)
        names["MODEL.RPN.HEAD_NAME"] = RPN_HEAD_REGISTRY
    if heads in _STANDARD_HEADS:
        _check_section(cfg, "MODEL.ROI_HEADS", _ROI_HEADS)
        _check_section(cfg, "MODEL.ROI_BOX_HEAD", _BOX_HEAD)
        names["MODEL.ROI_BOX_HEAD.NAME"] = ROI_BOX_HEAD_REGISTRY
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.NAME == "FastRCNNConvFCHead" and not head.NUM_FC + head.NUM_CONV:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.NUM_FC must be >= 1 with NUM_CONV 0, got 0: the head needs a "
                "layer"
            )
        if cfg.MODEL.MASK_ON:
            _check_section(cfg, "MODEL.ROI_MASK_HEAD", _MASK_HEAD)
            names["MODEL.ROI_MASK_HEAD.NAME"] = ROI_MASK_HEAD_REGISTRY
        if cfg.MODEL.KEYPOINT_ON:
            _check_section(cfg, "MODEL.ROI_KEYPOINT_HEAD", _KEYPOINT_HEAD)
            names["MODEL.ROI_KEYPOINT_HEAD.NAME"] = ROI_KEYPOINT_HEAD_REGISTRY
    for key, registry in names.items():
        name = config_value(cfg, key)
        if name not in registry and name != "PrecomputedProposals":
            raise ConfigError(f"{key}: " + unknown_name("name", name, dict(iter(registry))))


def _check_groups(cfg: CfgNode) -> None:
    """Whether GroupNorm can divide the channels into its 32 groups."""
    resnets = "MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"
    for norm, keys in (
        ("MODEL.FPN.NORM", ("MODEL.FPN.OUT_CHANNELS",)),
        ("MODEL.RESNETS.NORM", resnets),
    ):
        for key in keys if config_value(cfg, norm) == "GN" else ():
            value = config_value(cfg, key)
            if value % 32:
                raise ConfigError(f"{key} must be a multiple of 32, as {norm} is 'GN', got {value}")


def _check_features(cfg: CfgNode, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    features = config_value(cfg, key)
    Key(None, _FEATURES).check(key, features)
    for feature in features:
        if feature not in known:
            raise ConfigError(f"{key}: " + unknown_name("output of the ResNet", feature, known))
    return tuple(features)


def _check_depth(cfg: CfgNode) -> None:
    node = cfg.MODEL.RESNETS
    Key(None, _one_number_of(_DEPTHS)).check("MODEL.RESNETS.DEPTH", node.DEPTH)
    if node.DEPTH > 34:
        return
    wanted = {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}
    for name, value in wanted.items():
        if node[name] != value:
            raise ConfigError(
                f"MODEL.RESNETS.{name} must be {value} with MODEL.RESNETS.DEPTH {node.DEPTH}, got "
                f"{node[name]}"
            )
    if any(node.DEFORM_ON_PER_STAGE):
        raise ConfigError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE must be False for all stages, as "
            f"MODEL.RESNETS.DEPTH is {node.DEPTH}"
        )


def _check_anchors(cfg: CfgNode) -> None:
    key = _ANCHORS_ON.get(cfg.MODEL.META_ARCHITECTURE)
    if key is None:
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        has_rpn = cfg.MODEL.PROPOSAL_GENERATOR.NAME in _RPNS
        if not has_rpn or not issubclass(architecture, GeneralizedRCNN):
            return
        key = "MODEL.RPN.IN_FEATURES"
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator":
        return
    check_each(cfg, {key: _FEATURES, **_ANCHORS})
    levels = len(config_value(cfg, key))
    for name in ("SIZES", "ASPECT_RATIOS"):
        value = cfg.MODEL.ANCHOR_GENERATOR[name]
        if isinstance(value[0], list | tuple) and len(value) not in (1, levels):
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{name} must be one list for all levels, or one for each "
                f"of the {levels} of {key}, got {len(value)}"
            )
