"""SSD (Liu et al. 2016, https://arxiv.org/abs/1512.02325) and DSSD (Fu et al. 2017)."""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from corrdet.losses import Criterion, build_criterion
from corrdet.losses.matched_predictions import ACTIVATIONS
from corrdet.matching import hard_negative_mining, ssd_matching
from corrdet.names import unknown_name

from .backbone import feature_shapes
from .dense import CorrdetDenseDetector, check_inference, check_norm, expect
from .positives import check_image_bounds
from .priors import default_boxes
from .ssd_head import DSSDHead, SSDHead


@META_ARCH_REGISTRY.register()
class CorrdetSSD(CorrdetDenseDetector):
    """Default boxes of several shapes at each location, matched by IoU, with mined negatives.

    Negatives that hard negative mining leaves out are labelled as ignored, so that every loss sees
    the same samples. Keys: MODEL.SSD.
    """

    num_classes_key = "MODEL.SSD.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        activation: str,
        iou_threshold: float,
        negatives_per_positive: float,
        **kwargs,
    ):
        """
        Args:
            activation: of the class scores, "softmax" or "sigmoid".
            iou_threshold: priors that overlap a ground truth more than this are its positives.
            negatives_per_positive: so many negatives of each image are trained on; 0 for all.
            kwargs: as the base class.
        """
        super().__init__(**kwargs)
        self.activation = activation
        self.iou_threshold = iou_threshold
        self.negatives_per_positive = negatives_per_positive

    @classmethod
    def from_config(cls, cfg) -> dict:
        check_image_bounds(cfg)
        criterion = cls.build_criterion(cfg)
        backbone = build_backbone(cfg)
        node = cfg.MODEL.SSD
        shapes = feature_shapes(backbone.output_shape(), node.IN_FEATURES, "SSD.IN_FEATURES")
        priors = cls.build_priors(cfg, [shape.stride for shape in shapes])
        head = cls.build_head(
            cfg,
            shapes,
            num_priors=priors.num_anchors,
            num_logits=node.NUM_CLASSES + (node.ACTIVATION == "softmax"),
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
            "activation": node.ACTIVATION,
            "iou_threshold": node.IOU_THRESHOLD,
            "negatives_per_positive": node.NEGATIVES_PER_POSITIVE,
            "image_bounds": cfg.TEST.IMAGE_BOUNDS,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        cls.check_config(cfg)
        return build_criterion(cfg, activation=cfg.MODEL.SSD.ACTIVATION, has_deltas=True)

    @classmethod
    def check_config(cls, cfg) -> None:
        node = cfg.MODEL.SSD
        if node.ACTIVATION not in ACTIVATIONS:
            raise ValueError(
                "MODEL.SSD.ACTIVATION: " + unknown_name("activation", node.ACTIVATION, ACTIVATIONS)
            )
        if cfg.TEST.IMAGE_BOUNDS and node.ACTIVATION == "softmax":
            raise ValueError(
                "TEST.IMAGE_BOUNDS permutes the scores of a class, which with MODEL.SSD.ACTIVATION "
                "'softmax' cannot change alone: expected one of them to be False or 'sigmoid'"
            )
        quality = cfg.MODEL.DENSE.QUALITY
        expect(not quality, "DENSE.QUALITY", "'', as this head has no third branch", quality)
        check_norm(node.NORM, "SSD.NORM")
        check_inference(node, "SSD")
        expect(node.NUM_EXTRA_LEVELS >= 0, "SSD.NUM_EXTRA_LEVELS", ">= 0", node.NUM_EXTRA_LEVELS)
        expect(node.EXTRA_CHANNELS >= 2, "SSD.EXTRA_CHANNELS", ">= 2", node.EXTRA_CHANNELS)
        expect(0 < node.PRIOR_PROB < 1, "SSD.PRIOR_PROB", "in (0, 1)", node.PRIOR_PROB)
        expect(0 <= node.IOU_THRESHOLD < 1, "SSD.IOU_THRESHOLD", "in [0, 1)", node.IOU_THRESHOLD)
        ratio = node.NEGATIVES_PER_POSITIVE
        expect(ratio >= 0, "SSD.NEGATIVES_PER_POSITIVE", ">= 0", ratio)
        weights = node.BBOX_REG_WEIGHTS
        expect(_positive(weights, 4), "SSD.BBOX_REG_WEIGHTS", "four positive numbers", weights)
        cls.check_priors(cfg)

    @classmethod
    def check_priors(cls, cfg) -> None:
        """As :meth:`check_config`, of the keys that :meth:`build_priors` reads."""
        node = cfg.MODEL.SSD
        expect(node.IMAGE_SIZE > 0, "SSD.IMAGE_SIZE", "> 0", node.IMAGE_SIZE)
        expect(node.FIRST_SCALE > 0, "SSD.FIRST_SCALE", "> 0", node.FIRST_SCALE)
        valid = _positive(node.SCALES, 2) and node.SCALES[0] <= node.SCALES[1]
        expect(valid, "SSD.SCALES", "the smallest and the largest scale", node.SCALES)
        levels = len(node.IN_FEATURES)
        expect(levels >= 3, "SSD.IN_FEATURES", "three levels or more", node.IN_FEATURES)
        ratios = node.ASPECT_RATIOS
        valid = len(ratios) in (1, levels) and all(_positive(of_level) for of_level in ratios)
        expected = f"lists of positive numbers for all or for each of {levels} levels"
        expect(valid, "SSD.ASPECT_RATIOS", expected, ratios)

    @classmethod
    def build_priors(cls, cfg, strides: list[int]) -> DefaultAnchorGenerator:
        """Detectron2's generator of the priors of levels with these strides."""
        node = cfg.MODEL.SSD
        return default_boxes(
            strides, node.IMAGE_SIZE, node.FIRST_SCALE, *node.SCALES, node.ASPECT_RATIOS
        )

    @classmethod
    def build_head(cls, cfg, input_shape: list[ShapeSpec], **predictors) -> nn.Module:
        """The head; ``predictors`` are the arguments that :class:`SSDHead` has for all of them."""
        return SSDHead(channels=[shape.channels for shape in input_shape], **predictors)

    def match(
        self, priors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        return ssd_matching(priors, gt_boxes, gt_classes, self.num_classes, self.iou_threshold)

    @torch.no_grad()
    def label_predictions(
        self, priors: list[Boxes], logits: Tensor, deltas: Tensor, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        labels, gt_boxes = super().label_predictions(priors, logits, deltas, gt_instances)
        labels = mined_labels(
            labels, logits, len(gt_instances), self.activation, self.negatives_per_positive
        )
        return labels, gt_boxes

    def scores(self, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
        if self.activation == "sigmoid":
            return super().scores(predictions)
        (logits,) = self._transpose_dense_predictions([predictions[0]], [self.num_logits])
        return [of_level.float().softmax(dim=-1)[..., :-1] for of_level in logits]


@META_ARCH_REGISTRY.register()
class CorrdetDSSD(CorrdetSSD):
    """SSD whose levels know of the deeper ones, and have a residual block before they predict.

    See https://arxiv.org/abs/1701.06659. Keys: MODEL.SSD and MODEL.DSSD.
    """

    any_image_size = False

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        for key in ("DECONVOLUTION_CHANNELS", "PREDICTION_CHANNELS"):
            expect(cfg.MODEL.DSSD[key] >= 4, f"DSSD.{key}", ">= 4", cfg.MODEL.DSSD[key])

    @classmethod
    def build_head(cls, cfg, input_shape: list[ShapeSpec], **predictors) -> nn.Module:
        return DSSDHead(
            input_shape=input_shape,
            deconvolution_channels=cfg.MODEL.DSSD.DECONVOLUTION_CHANNELS,
            prediction_channels=cfg.MODEL.DSSD.PREDICTION_CHANNELS,
            norm=cfg.MODEL.SSD.NORM,
            **predictors,
        )


@torch.no_grad()
def mined_labels(
    labels: Tensor, logits: Tensor, num_images: int, activation: str, negatives_per_positive: float
) -> Tensor:
    """Labels with -1 for the negatives that hard negative mining leaves out.

    How wrong a negative is, is told by its cross entropy, whatever is trained with.

    Args:
        labels: (N x R,); C for background, -1 for ignored.
        logits: (N x R, C), or (N x R, C + 1) for a softmax.
        num_images: N.
        activation: "sigmoid" or "softmax".
        negatives_per_positive: of each image; 0 for all.
    """
    if not negatives_per_positive:
        return labels
    logits = logits.float()
    if activation == "softmax":
        num_classes = logits.shape[1] - 1
        losses = -logits.log_softmax(dim=1)[:, -1]
    else:
        num_classes = logits.shape[1]
        losses = F.softplus(logits).sum(dim=1)
    keep = hard_negative_mining(
        losses.view(num_images, -1),
        labels.view(num_images, -1),
        num_classes,
        negatives_per_positive,
    )
    return torch.where(keep.flatten(), labels, -1)


def _positive(values, count: int | None = None) -> bool:
    """Whether it is a list of positive numbers, and of so many."""
    if not isinstance(values, list | tuple) or count not in (None, len(values)):
        return False
    return all(isinstance(value, int | float) and value > 0 for value in values)
