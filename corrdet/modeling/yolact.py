"""YOLACT (Bolya et al. 2019, https://arxiv.org/abs/1904.02689) with the losses of a Criterion."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from corrdet.losses import Criterion, MatchedPredictions
from corrdet.matching import ssd_matching
from corrdet.names import unknown_name

from .backbone import feature_shapes
from .dense import CriterionTraining, expect
from .fast_nms import fast_nms
from .masks import assemble_masks, mask_ious, paste_masks, pixels_inside, shrink_masks
from .positives import mean_over_processes
from .ssd import mined_labels
from .yolact_head import YOLACTHead

# What tells how well a positive is localized, and how overlapping boxes are removed.
QUALITIES = ("box", "mask")
NMS = ("fast", "exact")


@META_ARCH_REGISTRY.register()
class CorrdetYOLACT(CriterionTraining, DenseDetector):
    """Instance segmentation by linear combinations of prototype masks. Keys: MODEL.YOLACT.

    Beside the Criterion's losses there are ``loss_mask`` and ``loss_semantic``. With the quality
    "mask" the ``ious`` that couplings and ``positives`` have are those of the masks, in the
    resolution of the prototypes, without gradient; localization losses train boxes as before.
    """

    activation = "softmax"
    has_masks = True
    num_classes_key = "MODEL.YOLACT.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: YOLACTHead,
        head_in_features: Sequence[str],
        prototype_stride: int,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        criterion: Criterion,
        iou_thresholds: tuple[float, float],
        negatives_per_positive: float,
        mask_weight: float,
        max_masks: int,
        semantic_weight: float,
        quality: str,
        nms: str,
        fast_nms_topk: int,
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float,
        max_detections_per_image: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone, head_in_features, pixel_mean, pixel_std: as detectron2's DenseDetector.
            head: see :class:`YOLACTHead`.
            prototype_stride: pixels of the image along a side of a pixel of the prototypes.
            anchor_generator, box2box_transform: as detectron2's RetinaNet.
            num_classes: C.
            criterion: the losses.
            iou_thresholds: anchors are negative below the first, positive from the second on.
            negatives_per_positive: so many at most are trained on, the most wrong ones.
            mask_weight: of ``loss_mask``.
            max_masks: of an image that are trained on, chosen at random.
            semantic_weight: of ``loss_semantic``.
            quality: of QUALITIES.
            nms: of NMS.
            fast_nms_topk: of :func:`fast_nms`.
            test_score_thresh: detections have a higher score than this.
            test_topk_candidates: of an image, so many at most enter NMS.
            test_nms_thresh: NMS removes boxes with a higher IoU than this.
            max_detections_per_image: after NMS.
            input_format: of the images' channels.
        """
        super().__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.prototype_stride = prototype_stride
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.criterion = criterion
        self.iou_thresholds = iou_thresholds
        self.negatives_per_positive = negatives_per_positive
        self.mask_weight = mask_weight
        self.max_masks = max_masks
        self.semantic_weight = semantic_weight
        self.quality = quality
        self.nms = nms
        self.fast_nms_topk = fast_nms_topk
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg) -> dict:
        criterion = cls.build_criterion(cfg)
        backbone = build_backbone(cfg)
        node = cfg.MODEL.YOLACT
        shapes = feature_shapes(backbone.output_shape(), node.IN_FEATURES, "YOLACT.IN_FEATURES")
        anchor_generator = build_anchor_generator(cfg, shapes)
        head = YOLACTHead(
            channels=shapes[0].channels,
            num_anchors=anchor_generator.num_cell_anchors[0],
            num_classes=node.NUM_CLASSES,
            num_prototypes=node.NUM_PROTOTYPES,
            protonet_dim=node.PROTONET_DIM,
            norm=node.NORM,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "prototype_stride": shapes[0].stride // 2,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "num_classes": node.NUM_CLASSES,
            "criterion": criterion,
            "iou_thresholds": node.IOU_THRESHOLDS,
            "negatives_per_positive": node.NEGATIVES_PER_POSITIVE,
            "mask_weight": node.MASK_WEIGHT,
            "max_masks": node.MAX_MASKS,
            "semantic_weight": node.SEMANTIC_WEIGHT,
            "quality": node.QUALITY,
            "nms": node.NMS,
            "fast_nms_topk": node.FAST_NMS_TOPK,
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
        """The losses of a config, after the detector's own keys have been checked.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`, or a value that the detector
                cannot work with; the message starts with its key.
        """
        node = cfg.MODEL.YOLACT
        for key, value, names in (("QUALITY", node.QUALITY, QUALITIES), ("NMS", node.NMS, NMS)):
            if value not in names:
                raise ValueError(f"MODEL.YOLACT.{key}: " + unknown_name("name", value, names))
        expect(node.NORM in ("", "GN"), "YOLACT.NORM", "'' or 'GN'", node.NORM)
        if not cfg.MODEL.MASK_ON:
            raise ValueError(
                "MODEL.MASK_ON must be True for CorrdetYOLACT, which is trained on masks, got False"
            )
        if cfg.TEST.IMAGE_BOUNDS:
            raise ValueError(
                "TEST.IMAGE_BOUNDS permutes the logits of classes, which of a softmax head are not "
                "scores: expected False for CorrdetYOLACT"
            )
        for key in ("NUM_CLASSES", "NUM_PROTOTYPES", "PROTONET_DIM", "MAX_MASKS", "FAST_NMS_TOPK"):
            expect(node[key] >= 1, f"YOLACT.{key}", ">= 1", node[key])
        for key in ("NEGATIVES_PER_POSITIVE", "MASK_WEIGHT", "SEMANTIC_WEIGHT"):
            expect(node[key] >= 0, f"YOLACT.{key}", ">= 0", node[key])
        thresholds = node.IOU_THRESHOLDS
        valid = len(thresholds) == 2 and 0 < thresholds[0] <= thresholds[1] <= 1
        expect(valid, "YOLACT.IOU_THRESHOLDS", "two ascending numbers in (0, 1]", thresholds)
        criterion = super().build_criterion(cfg)
        gradient = cfg.MODEL.CRITERION.CORRELATION.GRADIENT
        if node.QUALITY == "mask" and "correlation" in criterion.couplings:
            expect(
                gradient == "scores",
                "CRITERION.CORRELATION.GRADIENT",
                "'scores' with MODEL.YOLACT.QUALITY 'mask', as the IoU of masks has no gradient",
                gradient,
            )
        return criterion

    def normalizer(self, num_positives: int) -> Tensor:
        """The positives of a batch, on average over all processes, at least 1."""
        return mean_over_processes(num_positives, self.device).clamp(min=1)

    # ---- Matching.

    def match_ground_truths(self, priors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the M ground truths of an image each of its R anchors is trained towards.

        Args:
            priors: (R, 4).
            gt_boxes: (M, 4).

        Returns:
            (R,) int64: 0..M-1, M for background, -1 for ignored; and (R, 4), as
            :func:`ssd_matching`'s.
        """
        negative, positive = self.iou_thresholds
        num_gts = len(gt_boxes)
        # Every ground truth as a class of its own.
        places = torch.arange(num_gts, device=gt_boxes.device)
        return ssd_matching(priors, gt_boxes, places, num_gts, positive, negative)

    @torch.no_grad()
    def label_predictions(
        self, priors: list[Boxes], logits: Tensor, deltas: Tensor, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Match anchors, and ignore all negatives but the hardest (OHEM; Sec. 3.1, after SSD)."""
        priors = Boxes.cat(priors).tensor
        labels, boxes = [], []
        for instances in gt_instances:
            matched, matched_boxes = self.match_ground_truths(priors, instances.gt_boxes.tensor)
            # Places M and -1 are those of background and ignored.
            others = instances.gt_classes.new_tensor([self.num_classes, -1])
            labels.append(torch.cat([instances.gt_classes, others])[matched])
            boxes.append(matched_boxes)
        mined = mined_labels(
            torch.cat(labels), logits, len(labels), self.activation, self.negatives_per_positive
        )
        return mined, torch.cat(boxes)

    def match_predictions(
        self,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> MatchedPredictions:
        """As the base class; with the quality "mask" also the IoUs of masks."""
        matched = super().match_predictions(priors, predictions, gt_instances)
        if self.quality == "mask":
            matched.mask_ious = self.positive_mask_ious(matched, priors, predictions, gt_instances)
        return matched

    def positive_masks(
        self,
        matched: MatchedPredictions,
        priors: list[Boxes],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ):
        """For each image in turn, what is predicted of its P' positives and what is there.

        Letters: K prototypes of H x W pixels, M ground truths of an image.

        Yields:
            places (P',) among all positives of the batch; coefficients (P', K); prototypes
            (K, H, W); ground truths (P',) in 0..M-1; their masks, as :meth:`shrunk_masks`.
        """
        priors = Boxes.cat(priors).tensor
        coefficients = self._flattened(predictions[2], predictions[3][0].shape[1])
        for index, (prototypes, instances) in enumerate(
            zip(predictions[3][0], gt_instances, strict=True)
        ):
            places = torch.nonzero(matched.image_ids == index)[:, 0]
            rows = matched.positives[places]
            # Labels do not tell it: they are classes.
            ground_truths, _ = self.match_ground_truths(priors, instances.gt_boxes.tensor)
            yield (
                places,
                coefficients[rows],
                prototypes,
                ground_truths[rows - index * len(priors)],
                self.shrunk_masks(instances, self.prototype_stride, prototypes.shape[1:]),
            )

    def shrunk_masks(self, instances: Instances, stride: int, size: tuple[int, int]) -> Tensor:
        """(M, height, width) shares of pixels in the masks of the M ground truths.

        Raises:
            ValueError: there are none.
        """
        if len(instances) == 0:
            return torch.zeros((0, *size), device=self.device)
        if not instances.has("gt_masks"):
            raise ValueError(
                "CorrdetYOLACT needs the mask of every object, as 'gt_masks'; got instances with "
                f"{', '.join(instances.get_fields())}"
            )
        masks = shrink_masks(instances.gt_masks, instances.image_size, stride, *size)
        return masks.to(self.device)

    @torch.no_grad()
    def positive_mask_ious(self, matched, priors, predictions, gt_instances) -> Tensor:
        """(P,) IoUs of the positives' masks, cut at their predicted boxes as at inference."""
        ious = torch.zeros_like(matched.positives, dtype=torch.float32)
        for places, coefficients, prototypes, ground_truths, gt_masks in self.positive_masks(
            matched, priors, predictions, gt_instances
        ):
            boxes = matched.boxes[places] / self.prototype_stride
            inside = pixels_inside(boxes, *prototypes.shape[1:])
            # A probability above 1/2.
            masks = (assemble_masks(prototypes, coefficients) > 0) & inside
            ious[places] = mask_ious(masks, gt_masks[ground_truths] >= 0.5)
        return ious

    # ---- Losses of the masks.

    def auxiliary_losses(
        self, matched, normalizer, priors, predictions, gt_instances
    ) -> dict[str, Tensor]:
        return {
            "loss_mask": self.mask_loss(matched, normalizer, priors, predictions, gt_instances),
            "loss_semantic": self.semantic_loss(predictions[4][0], gt_instances),
        }

    def mask_loss(self, matched, normalizer, priors, predictions, gt_instances) -> Tensor:
        """Cross entropy of the positives' masks within their ground-truth boxes.

        It is divided by the area of the box, so that all objects count the same (Sec. 3.1), and by
        the normalizer. Of an image with more than ``max_masks`` positives those that are chosen
        stand for all.
        """
        total = 0.0
        for places, coefficients, prototypes, ground_truths, gt_masks in self.positive_masks(
            matched, priors, predictions, gt_instances
        ):
            num_positives = len(places)
            if num_positives > self.max_masks:
                chosen = torch.randperm(num_positives, device=places.device)[: self.max_masks]
                places, coefficients = places[chosen], coefficients[chosen]
                ground_truths = ground_truths[chosen]
            boxes = matched.gt_boxes[places] / self.prototype_stride
            inside = pixels_inside(boxes, *prototypes.shape[1:])
            losses = F.binary_cross_entropy_with_logits(
                assemble_masks(prototypes, coefficients),
                gt_masks[ground_truths],
                reduction="none",
            )
            # At least a pixel.
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1)
            loss = ((losses * inside).sum(dim=(1, 2)) / areas).sum()
            total = total + loss * (num_positives / max(len(places), 1))
        return total / normalizer * self.mask_weight

    def semantic_loss(self, logits: Tensor, gt_instances: list[Instances]) -> Tensor:
        """Cross entropy of each class and pixel, the sum over classes (Sec. 3.3).

        Args:
            logits: (N, C, H, W).
            gt_instances: the ground truth of the N images.
        """
        targets = torch.zeros_like(logits, dtype=torch.float32)
        for target, instances in zip(targets, gt_instances, strict=True):
            masks = self.shrunk_masks(instances, 2 * self.prototype_stride, logits.shape[2:])
            # A pixel may belong to several objects.
            target.index_add_(0, instances.gt_classes, (masks >= 0.5).float()).clamp_(max=1)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum(dim=1).mean() * self.semantic_weight

    # ---- Inference.

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """Detections of each image, in the size that it has in the batch, with ``masks``: (D, H, W)
        probabilities in the resolution of the prototypes.
        """
        logits, deltas, coefficients, (prototypes,), _ = predictions
        sizes = [self.num_logits, 4, prototypes.shape[1]]
        flat = self._transpose_dense_predictions([logits, deltas, coefficients], sizes)
        logits, deltas, coefficients = (torch.cat(levels, dim=1).float() for levels in flat)
        priors = Boxes.cat(self.anchor_generator(features)).tensor
        return [
            self.inference_single_image(priors, *of_image)
            for of_image in zip(
                logits, deltas, coefficients, prototypes, images.image_sizes, strict=True
            )
        ]

    def inference_single_image(
        self,
        priors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        coefficients: Tensor,
        prototypes: Tensor,
        image_size: tuple[int, int],
    ) -> Instances:
        """Threshold, the best of all levels, decoding, NMS within each class, masks.

        Args:
            priors: (R, 4).
            logits: (R, C + 1).
            deltas: (R, 4).
            coefficients: (R, K).
            prototypes: (K, H, W).
            image_size: (height, width).
        """
        scores = logits.softmax(dim=1)[:, :-1]
        candidates = torch.nonzero(scores > self.test_score_thresh)
        scores = scores[candidates[:, 0], candidates[:, 1]]
        scores, best = scores.topk(min(self.test_topk_candidates, len(scores)))
        anchors, classes = candidates[best].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(deltas[anchors], priors[anchors])
        if self.nms == "fast":
            keep = fast_nms(boxes, scores, classes, self.test_nms_thresh, self.fast_nms_topk)
        else:
            keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        keep = keep[: self.max_detections_per_image]
        result = Instances(image_size)
        result.pred_boxes = Boxes(boxes[keep])
        result.scores = scores[keep]
        result.pred_classes = classes[keep]
        result.masks = assemble_masks(prototypes, coefficients[anchors[keep]]).sigmoid()
        return result

    def postprocess(self, result: Instances, height: int, width: int) -> Instances:
        """As the base class; ``masks`` become ``pred_masks``, (D, height, width) bool."""
        scales = height / result.image_size[0], width / result.image_size[1]
        result = detector_postprocess(result, height, width)
        result.pred_masks = paste_masks(
            result.masks,
            result.pred_boxes.tensor,
            tuple(self.prototype_stride * scale for scale in scales),
            height,
            width,
        )
        result.remove("masks")
        return result
