"""Sparse R-CNN (Sun et al. 2021, https://arxiv.org/abs/2011.12450) with the losses of a Criterion.

A set of learned boxes, each with a learned feature, is refined in stages. Ground truth is matched
one-to-one at every stage, so that there are no anchors and no non-maximum suppression.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from corrdet.activation import initialize_bias
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion, MatchedPredictions
from corrdet.matching import hungarian_matching
from corrdet.options import NOT_NEGATIVE, PROBABILITY, Key, at_least, default_of

from ..core.config_checks import build_features
from ..core.detector import Detector
from ..core.training import (
    add_positives,
    batch_images,
    ground_truth,
    image_extents,
)
from .stages import match_stages, matching_costs, objects_normalizer, stage_losses

# The largest coordinate that a stage is given, in pixels: see CorrdetSparseRCNN.refine.
_FAR = 1e5

# Defaults are as published. TEST.DETECTIONS_PER_IMAGE is the number of pairs of a proposal and a
# class that are detected.
declare(
    "MODEL.SPARSE_RCNN",
    "Sparse R-CNN (Sun et al. 2021), beside MODEL.ROI_HEADS.IN_FEATURES and MODEL.ROI_BOX_HEAD."
    "POOLER_*",
    NUM_CLASSES=Key(80, at_least(1), "classes of the data"),
    NUM_PROPOSALS=Key(100, at_least(1), "100 or 300 (Table 1)"),
    NUM_STAGES=Key(6, at_least(1), "stages that refine boxes"),
    HIDDEN_DIM=Key(
        256,
        at_least(1),
        "channels of the proposals' features; the backbone's features must have as many",
    ),
    NUM_ATTENTION_HEADS=Key(8, at_least(1), "heads of the attention; divides HIDDEN_DIM"),
    FEEDFORWARD_DIM=Key(2048, at_least(1), "channels of the layer behind the interaction"),
    DYNAMIC_DIM=Key(
        64, at_least(1), "channels between the two convolutions of the interaction (Fig. 4)"
    ),
    NUM_CLS_LAYERS=Key(1, at_least(0), "layers before classification"),
    NUM_BOX_LAYERS=Key(3, at_least(0), "layers before box regression"),
    PRIOR_PROB=Key(0.01, PROBABILITY, "the score that all classes start with, as in RetinaNet"),
    CLASS_COST=Key(
        default_of(hungarian_matching, "classification_weight"),
        NOT_NEGATIVE,
        "weight of the focal loss in the matching (Eq. 1), with alpha 0.25 and gamma 2 whatever "
        "the classification loss is",
    ),
    L1_COST=Key(
        default_of(hungarian_matching, "l1_weight"),
        NOT_NEGATIVE,
        "weight of L1 in the matching",
    ),
    GIOU_COST=Key(
        default_of(hungarian_matching, "giou_weight"),
        NOT_NEGATIVE,
        "weight of GIoU in the matching",
    ),
    L1_WEIGHT=Key(
        5.0,
        NOT_NEGATIVE,
        "weight of the L1 loss of boxes in units of the image's width and height, which comes on "
        "top of MODEL.CRITERION's losses; 0 for none; the published weights of those, focal loss 2 "
        "and GIoU 2, are set in configs/Base-SparseRCNN.yaml",
    ),
)


class DynamicInteraction(nn.Module):
    """Filters the features of each region with weights that its proposal's feature makes.

    Two 1 x 1 convolutions, one down to few channels and one back (Fig. 4), then a linear layer over
    the whole region.
    """

    def __init__(self, channels: int, inner_channels: int, resolution: int):
        """
        Args:
            channels: of proposals' and regions' features.
            inner_channels: between the two convolutions.
            resolution: a region has resolution x resolution features.
        """
        super().__init__()
        self.channels = channels
        self.inner_channels = inner_channels
        self.weights = nn.Linear(channels, 2 * channels * inner_channels)
        self.norm1 = nn.LayerNorm(inner_channels)
        self.norm2 = nn.LayerNorm(channels)
        self.output = nn.Linear(channels * resolution**2, channels)
        self.output_norm = nn.LayerNorm(channels)

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """
        Args:
            proposals: (R, D) features of the proposals.
            regions: (R, L, D) features of their regions.

        Returns:
            (R, D).
        """
        first, second = self.weights(proposals).chunk(2, dim=1)
        first = first.view(-1, self.channels, self.inner_channels)
        second = second.view(-1, self.inner_channels, self.channels)
        filtered = F.relu(self.norm1(regions.bmm(first)))
        filtered = F.relu(self.norm2(filtered.bmm(second)))
        return F.relu(self.output_norm(self.output(filtered.flatten(1))))


class DynamicStage(nn.Module):
    """One of the stages: attention among the proposals of an image, interaction, predictions."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        criterion: Criterion,
        *,
        num_attention_heads: int,
        feedforward_channels: int,
        inner_channels: int,
        resolution: int,
        num_cls_layers: int,
        num_box_layers: int,
        prior_prob: float,
    ):
        """
        Args:
            num_classes: C.
            channels: D, of proposals' and regions' features.
            criterion: the losses of this stage; what they keep from step to step is its own.
            num_attention_heads: among which these channels are divided.
            feedforward_channels: of the hidden layer behind the interaction.
            inner_channels, resolution: see :class:`DynamicInteraction`.
            num_cls_layers, num_box_layers: before classification and box regression.
            prior_prob: the score that all classes start with.
        """
        super().__init__()
        self.criterion = criterion
        self.attention = nn.MultiheadAttention(channels, num_attention_heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(channels)
        self.interaction = DynamicInteraction(channels, inner_channels, resolution)
        self.interaction_norm = nn.LayerNorm(channels)
        self.feedforward = nn.Sequential(
            nn.Linear(channels, feedforward_channels),
            nn.ReLU(),
            nn.Linear(feedforward_channels, channels),
        )
        self.feedforward_norm = nn.LayerNorm(channels)
        self.cls_tower = _tower(channels, num_cls_layers)
        self.box_tower = _tower(channels, num_box_layers)
        self.cls_score = nn.Linear(channels, num_classes)
        self.bbox_pred = nn.Linear(channels, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        initialize_bias(self.cls_score, "sigmoid", prior_prob)

    def forward(self, proposals: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            proposals: (N, Q, D) features of the Q proposals of each image.
            regions: (N x Q, L, D) features of their regions.

        Returns:
            (N, Q, D) features for the next stage, (N, Q, C) logits, (N, Q, 4) deltas.
        """
        attended, _ = self.attention(proposals, proposals, proposals, need_weights=False)
        proposals = self.attention_norm(proposals + attended)
        interacted = self.interaction(proposals.flatten(0, 1), regions).view_as(proposals)
        proposals = self.interaction_norm(proposals + interacted)
        proposals = self.feedforward_norm(proposals + self.feedforward(proposals))
        logits = self.cls_score(self.cls_tower(proposals))
        return proposals, logits, self.bbox_pred(self.box_tower(proposals))


def _tower(channels: int, num_layers: int) -> nn.Sequential:
    layers = []
    for _ in range(num_layers):
        layers += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


@META_ARCH_REGISTRY.register()
class CorrdetSparseRCNN(Detector, nn.Module):
    """Sparse R-CNN, with a Criterion at each stage.

    Beside the Criterion's losses every stage has ``loss_l1``, of boxes in units of their image's
    width and height, as published. These boxes are also what losses of deltas compare. The losses
    of all stages but the last, which makes the detections, have the stage in their name:
    ``loss_cls_0``.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: scores and IoUs of the last stage's matched proposals, for beta_img.
    """

    num_classes_key = "MODEL.SPARSE_RCNN.NUM_CLASSES"
    sections = ("MODEL.SPARSE_RCNN",)
    has_priors = False

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_features: Sequence[str],
        box_pooler: ROIPooler,
        stages: Sequence[DynamicStage],
        num_proposals: int,
        channels: int,
        l1_weight: float,
        matching_costs: dict[str, float],
        max_detections: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            backbone: gives features of strides that ``box_pooler`` knows.
            in_features: names of those that are used.
            box_pooler: of the regions of the proposals.
            stages: of the same number of classes.
            num_proposals: Q.
            channels: D, of the proposals' features.
            l1_weight: of the L1 loss; 0 for none.
            matching_costs: ``classification_weight``, ``l1_weight`` and ``giou_weight`` of
                :func:`corrdet.matching.hungarian_matching`.
            max_detections: of an image.
            pixel_mean, pixel_std: of each channel.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = tuple(in_features)
        self.box_pooler = box_pooler
        # In units of the image: centre and sides. All start as the whole image.
        self.proposal_boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1, 1]).repeat(num_proposals, 1))
        self.proposal_features = nn.Parameter(torch.randn(num_proposals, channels))
        self.stages = nn.ModuleList(stages)
        self.num_classes = stages[-1].cls_score.out_features
        # Weights and clamp as published: boxes shrink from the whole image to small objects.
        self.box2box_transform = Box2BoxTransform((2.0, 2.0, 1.0, 1.0), math.log(100000 / 16))
        self.l1_weight = l1_weight
        self.matching_costs = matching_costs
        self.max_detections = max_detections
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        cls.check_values(cfg)  # whether there is a stage at all
        node = cfg.MODEL.SPARSE_RCNN
        criteria = [cls.build_criterion(cfg) for _ in range(node.NUM_STAGES)]
        backbone, shapes = build_features(cfg, "MODEL.ROI_HEADS.IN_FEATURES")
        _check_channels(cfg, shapes)
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        stages = [
            DynamicStage(
                node.NUM_CLASSES,
                node.HIDDEN_DIM,
                criterion,
                num_attention_heads=node.NUM_ATTENTION_HEADS,
                feedforward_channels=node.FEEDFORWARD_DIM,
                inner_channels=node.DYNAMIC_DIM,
                resolution=resolution,
                num_cls_layers=node.NUM_CLS_LAYERS,
                num_box_layers=node.NUM_BOX_LAYERS,
                prior_prob=node.PRIOR_PROB,
            )
            for criterion in criteria
        ]
        return {
            "backbone": backbone,
            "in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": ROIPooler(
                resolution,
                [1 / shape.stride for shape in shapes],
                cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "stages": stages,
            "num_proposals": node.NUM_PROPOSALS,
            "channels": node.HIDDEN_DIM,
            "l1_weight": node.L1_WEIGHT,
            "matching_costs": matching_costs(node),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        node, resolution = cfg.MODEL.SPARSE_RCNN, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        if resolution < 1:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION must be >= 1, got {resolution}"
            )
        if node.HIDDEN_DIM % node.NUM_ATTENTION_HEADS:
            raise ConfigError(
                "MODEL.SPARSE_RCNN.HIDDEN_DIM must be divisible by NUM_ATTENTION_HEADS, got "
                f"{node.HIDDEN_DIM} and {node.NUM_ATTENTION_HEADS}"
            )

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: of each image ``image``, (channels, H, W), in training ``instances``
                with ``gt_boxes`` and ``gt_classes``, and the ``height`` and ``width`` to detect in.

        Returns:
            in training the losses by name; else, of each image, ``instances``, and see the class.

        Raises:
            ValueError: training without ground truth.
        """
        images = self.preprocess_image(batched_inputs)
        gt_instances = ground_truth(batched_inputs, self.device, is_needed=self.training)
        logits, boxes = self.refine(images)
        if self.training:
            matched = self.match_predictions(logits, boxes, gt_instances)
            return self.losses(matched, objects_normalizer(gt_instances, self.device))

        outputs = []
        for image, size, image_logits, image_boxes in zip(
            batched_inputs, images.image_sizes, logits[-1], boxes[-1], strict=True
        ):
            detected = self.detect(image_logits, image_boxes, size)
            height, width = image.get("height", size[0]), image.get("width", size[1])
            outputs.append({"instances": detector_postprocess(detected, height, width)})
        if gt_instances is not None:
            (matched,) = self.match_predictions(logits[-1:], boxes[-1:], gt_instances)
            add_positives(outputs, matched)
        return outputs

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize, pad and batch."""
        return batch_images(
            batched_inputs, self.pixel_mean, self.pixel_std, self.backbone.size_divisibility
        )

    def refine(self, images: ImageList) -> tuple[Tensor, Tensor]:
        """What every stage predicts.

        Letters: T stages, N images, Q proposals, C classes.

        Returns:
            (T, N, Q, C) logits, and (T, N, Q, 4) boxes, XYXY in pixels, float32; the gradient of
            the boxes of a stage does not reach the stages before.
        """
        features = self.backbone(images.tensor)
        # Detectron2 rounds boxes to the features' precision: in half, by whole pixels.
        features = [features[name].float() for name in self.in_features]
        num_images = len(images)
        center, sides = self.proposal_boxes.split(2, dim=1)
        sides = sides.abs()  # a side that an optimizer's step took below 0 can still come back
        boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
        boxes = boxes * image_extents(images.image_sizes, boxes)[:, None]
        proposals = self.proposal_features.expand(num_images, -1, -1)
        all_logits, all_boxes = [], []
        for stage in self.stages:
            regions = self.box_pooler(
                features, [Boxes(image_boxes.detach()) for image_boxes in boxes]
            )
            regions = regions.flatten(2).transpose(1, 2)
            proposals, logits, deltas = stage(proposals, regions)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1))
            boxes = boxes.view(num_images, -1, 4)
            all_logits.append(logits)
            all_boxes.append(boxes)
            # Pooling may read outside its features at coordinates that are not finite. They are
            # kept in this stage's boxes, for its losses to tell.
            boxes = boxes.detach().nan_to_num(nan=0.0, posinf=_FAR, neginf=-_FAR)
        return torch.stack(all_logits), torch.stack(all_boxes)

    def match_predictions(
        self, logits: Tensor, boxes: Tensor, gt_instances: Sequence[Instances]
    ) -> list[MatchedPredictions]:
        """Match every stage by itself and gather what its losses read.

        Args:
            logits, boxes: of :meth:`refine`.
            gt_instances: the ground truth of the N images.

        Returns:
            of each stage; samples are the Q proposals of each image, image by image.
        """
        return match_stages(logits, boxes, gt_instances, self.matching_costs)

    def losses(
        self, matched: Sequence[MatchedPredictions], normalizer: float | Tensor
    ) -> dict[str, Tensor]:
        """The losses of all stages, from :meth:`match_predictions`, by name; see the class."""
        criteria = [stage.criterion for stage in self.stages]
        return stage_losses(criteria, matched, normalizer, self.l1_weight)

    def detect(self, logits: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Instances:
        """The pairs of a proposal and a class with the highest scores; there is no NMS.

        Args:
            logits: (Q, C) of one image.
            boxes: (Q, 4).
            image_size: its height and width.
        """
        scores = logits.float().sigmoid().flatten()
        scores, chosen = scores.topk(min(self.max_detections, len(scores)))
        result = Instances(image_size)
        result.pred_boxes = Boxes(boxes[chosen // self.num_classes])
        result.scores = scores
        result.pred_classes = chosen % self.num_classes
        return result


def _check_channels(cfg, shapes: Sequence[ShapeSpec]) -> None:
    """
    Raises:
        ConfigError: proposals and features of the backbone do not fit together.
    """
    hidden_dim = cfg.MODEL.SPARSE_RCNN.HIDDEN_DIM
    channels = sorted({shape.channels for shape in shapes})
    if channels != [hidden_dim]:
        raise ConfigError(
            f"MODEL.SPARSE_RCNN.HIDDEN_DIM is {hidden_dim}, but the backbone's features "
            f"{list(cfg.MODEL.ROI_HEADS.IN_FEATURES)} (MODEL.ROI_HEADS.IN_FEATURES) have "
            f"{' and '.join(map(str, channels))} channels; they have to be the same"
        )
