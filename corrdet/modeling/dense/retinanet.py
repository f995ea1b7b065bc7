"""RetinaNet (Lin et al. 2017) with the losses of a Criterion."""

from functools import partial
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

from corrdet.matching import max_iou_matching

from ..core.config_checks import build_features
from ..core.training import RunningPositives
from .detector import DenseDetector, DenseHead, MatchImages
from .inference import Inference


@META_ARCH_REGISTRY.register()
class CorrdetRetinaNet(DenseDetector):
    """Detectron2's RetinaNet: its keys, anchors, head, weights and inference.

    Its losses are the Criterion's, divided by a running mean of positives as Detectron2's are.
    """

    num_classes_key = "MODEL.RETINANET.NUM_CLASSES"
    # The defaults of beta differ: ours is what Detectron2's RetinaNet configs set, and what
    # RetinaNet was published with.
    replaced_keys = (
        "MODEL.RETINANET",
        (
            ("FOCAL_LOSS_ALPHA", "SIGMOID_FOCAL.ALPHA"),
            ("FOCAL_LOSS_GAMMA", "SIGMOID_FOCAL.GAMMA"),
            ("SMOOTH_L1_LOSS_BETA", "SMOOTH_L1.BETA"),
            ("BBOX_REG_LOSS_TYPE", "LOCALIZATION"),
        ),
    )

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        criterion = cls.build_criterion(cfg)
        backbone, shapes = build_features(cfg, "MODEL.RETINANET.IN_FEATURES")
        node = cfg.MODEL.RETINANET
        anchor_generator = build_anchor_generator(cfg, shapes)
        head = DenseHead(
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            num_anchors=anchor_generator.num_cell_anchors[0],
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        matcher = Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True)
        matching = partial(max_iou_matching, matcher=matcher)
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "matcher": MatchImages(matching, node.NUM_CLASSES, by_level=False),
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "normalizer": RunningPositives(),
            "inference": Inference.from_config(cfg, node),
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }
