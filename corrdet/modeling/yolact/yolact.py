"""YOLACT (Bolya et al. 2019, https://arxiv.org/abs/1904.02689) with the losses of a Criterion."""

from functools import partial
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances

from corrdet.activation import activation_keys
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion
from corrdet.matching import ssd_matching
from corrdet.options import NOT_NEGATIVE, SHARE, Key, Range, at_least, default_of, numbers, one_of

from ..core.config_checks import build_features
from ..core.training import BatchPositives
from ..dense.detector import Assignment, DenseDetector, Samples
from ..dense.inference import Inference
from ..ssd.mining import MinedMatcher
from .fast_nms import fast_nms
from .head import YOLACTHead
from .mask_branch import MaskBranch


def _are_thresholds(value: Any) -> bool:
    return numbers(2).holds(value) and value[0] <= value[1] <= 1


# Defaults are as published. Of Detectron2's own keys it reads MODEL.ANCHOR_GENERATOR, and
# MODEL.MASK_ON has to be True.
declare(
    "MODEL.YOLACT",
    "YOLACT (Bolya et al. 2019), beside MODEL.ANCHOR_GENERATOR and MODEL.MASK_ON True",
    NUM_CLASSES=Key(80, at_least(1), "classes of the data"),
    IN_FEATURES=Key(
        ["p3", "p4", "p5", "p6", "p7"],
        line="outputs of the backbone; prototypes come from the first, with twice its resolution",
    ),
    NUM_PROTOTYPES=Key(32, at_least(1), "prototype masks, k in Sec. 3"),
    PROTONET_DIM=Key(256, at_least(1), "channels of the layers before the prototypes (Fig. 3)"),
    NORM=Key(
        "",
        one_of(("", "GN")),
        "norm of the head and of the layers before the prototypes: '', or 'GN' to train from "
        "scratch",
    ),
    **activation_keys("softmax"),
    IOU_THRESHOLDS=Key(
        (0.4, 0.5),
        Range("two ascending numbers in (0, 1]", _are_thresholds),
        "an anchor is negative with a lower IoU than the first, positive from the second on",
    ),
    BBOX_REG_WEIGHTS=Key(
        (10.0, 10.0, 5.0, 5.0),
        numbers(4),
        "weights of the deltas: the inverse of SSD's variances",
    ),
    NEGATIVES_PER_POSITIVE=Key(
        3.0,
        NOT_NEGATIVE,
        "of each image, the hardest negatives that are trained on; 0 for all of them, as focal and "
        "ranking losses want it",
    ),
    MASK_WEIGHT=Key(6.125, NOT_NEGATIVE, "weight of the loss of masks (Sec. 5)"),
    MAX_MASKS=Key(100, at_least(1), "of an image, so many masks at most are trained on"),
    MASK_TARGETS=Key(
        "shares",
        one_of(("shares", "binary")),
        "what masks are trained towards: the share of a pixel of the prototypes that is in the "
        "mask, or, as in the authors' code, whether it is at least half",
    ),
    SEMANTIC_WEIGHT=Key(1.0, NOT_NEGATIVE, "weight of the semantic segmentation's loss (Sec. 3.3)"),
    QUALITY=Key(
        "box",
        one_of(("box", "mask")),
        "what couplings take for the IoU of a positive, and so beta_img: that of its 'box' or "
        "'mask'",
    ),
    SCORE_THRESH_TEST=Key(0.05, line="detections have a higher score than this"),
    TOPK_CANDIDATES_TEST=Key(1000, at_least(1), "of an image, so many at most enter NMS"),
    NMS=Key("fast", one_of(("fast", "exact")), "'fast' (Sec. 3.4) or 'exact'"),
    NMS_THRESH_TEST=Key(0.5, SHARE, "NMS removes boxes with a higher IoU than this"),
    FAST_NMS_TOPK=Key(
        default_of(fast_nms, "topk"), at_least(1), "of fast NMS: of each class, n in the paper"
    ),
)


@META_ARCH_REGISTRY.register()
class CorrdetYOLACT(DenseDetector):
    """Instance segmentation by linear combinations of prototype masks.

    Beside the Criterion's losses there are ``loss_mask`` and ``loss_semantic``. With the quality
    "mask" the ``ious`` that couplings and ``positives`` have are those of the masks, in the
    resolution of the prototypes, without gradient; localization losses train boxes as before.
    """

    num_classes_key = "MODEL.YOLACT.NUM_CLASSES"
    sections = ("MODEL.YOLACT",)
    activation_key = "MODEL.YOLACT.ACTIVATION"
    # Neither merging of views nor export knows masks.
    supports_test_time_augmentation = False
    exportable = False

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        if not cfg.MODEL.MASK_ON:
            raise ConfigError(
                "MODEL.MASK_ON must be True for CorrdetYOLACT, which is trained on masks, got False"
            )

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        criterion = super().build_criterion(cfg)
        gradient = cfg.MODEL.CRITERION.CORRELATION.GRADIENT
        has_correlation = "correlation" in criterion.couplings
        if has_correlation and cfg.MODEL.YOLACT.QUALITY == "mask" and gradient != "scores":
            raise ConfigError(
                "MODEL.CRITERION.CORRELATION.GRADIENT must be 'scores' with MODEL.YOLACT.QUALITY "
                f"'mask', as the IoU of masks has no gradient, got {gradient!r}"
            )
        return criterion

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        criterion = cls.build_criterion(cfg)
        backbone, shapes = build_features(cfg, "MODEL.YOLACT.IN_FEATURES")
        node = cfg.MODEL.YOLACT
        anchor_generator = build_anchor_generator(cfg, shapes)
        head = YOLACTHead(
            channels=shapes[0].channels,
            num_anchors=anchor_generator.num_cell_anchors[0],
            num_classes=node.NUM_CLASSES,
            num_prototypes=node.NUM_PROTOTYPES,
            protonet_dim=node.PROTONET_DIM,
            norm=node.NORM,
            activation=node.ACTIVATION,
            prior_prob=node.PRIOR_PROB,
        )
        matcher = GroundTruthMatcher(node.IOU_THRESHOLDS, node.NUM_CLASSES)
        is_fast = node.NMS == "fast"
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "matcher": MinedMatcher(matcher, node.ACTIVATION, node.NEGATIVES_PER_POSITIVE),
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "normalizer": BatchPositives(),
            "inference": Inference.from_config(
                cfg,
                node,
                topk_per_level=False,
                nms=partial(fast_nms, topk=node.FAST_NMS_TOPK) if is_fast else batched_nms,
            ),
            "branch": MaskBranch(
                prototype_stride=shapes[0].stride // 2,
                mask_weight=node.MASK_WEIGHT,
                max_masks=node.MAX_MASKS,
                semantic_weight=node.SEMANTIC_WEIGHT,
                quality=node.QUALITY,
                mask_targets=node.MASK_TARGETS,
            ),
            "activation": node.ACTIVATION,
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }


class GroundTruthMatcher:
    """SSD's matching, ignoring what lies between two IoUs, that tells ground truths apart."""

    def __init__(self, iou_thresholds: tuple[float, float], num_classes: int):
        """
        Args:
            iou_thresholds: anchors are negative below the first, positive from the second on.
            num_classes: C.
        """
        self.iou_thresholds = iou_thresholds
        self.num_classes = num_classes

    @torch.no_grad()
    def __call__(self, samples: Samples, gt_instances: list[Instances]) -> Assignment:
        negative, positive = self.iou_thresholds
        labels, gt_boxes, ground_truths = [], [], []
        for priors, instances in zip(samples.priors, gt_instances, strict=True):
            # Every ground truth as a class of its own: 0..M-1, M for background, -1 for ignored.
            ids = torch.arange(len(instances), device=priors.device)
            boxes = instances.gt_boxes.tensor
            matched, matched_boxes = ssd_matching(
                priors, boxes, ids, len(instances), positive, negative
            )
            # At M and -1.
            others = instances.gt_classes.new_tensor([self.num_classes, -1])
            labels.append(torch.cat([instances.gt_classes, others])[matched])
            gt_boxes.append(matched_boxes)
            ground_truths.append(matched)
        return Assignment(torch.cat(labels), torch.cat(gt_boxes), torch.cat(ground_truths))
