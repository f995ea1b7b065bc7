"""DETR (Carion et al. 2020, https://arxiv.org/abs/2005.12872) with the losses of a Criterion.

The NMS-free baseline of what the thesis "Correlation Loss" analyses (Table 3.2). Parameters have
the names of the original, but those of the backbone: see tools/convert_detr.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from corrdet.activation import activation_keys, class_scores, initialize_bias, num_logits
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion, MatchedPredictions
from corrdet.options import NOT_NEGATIVE, SHARE_BELOW_1, Key, at_least

from ..core.detector import Detector
from ..core.training import add_positives, batch_images, ground_truth, image_extents
from .stages import match_stages, matching_costs, objects_normalizer, stage_losses

# Defaults are as published.
declare(
    "MODEL.DETR",
    "DETR (Carion et al. 2020)",
    NUM_CLASSES=Key(80, at_least(1), "classes of the data"),
    NUM_QUERIES=Key(100, at_least(1), "object queries"),
    IN_FEATURE=Key("res5", line="output of the backbone that is used"),
    HIDDEN_DIM=Key(256, at_least(1), "channels; divisible by 4 and by twice NUM_HEADS"),
    NUM_HEADS=Key(8, at_least(1), "heads of all attentions"),
    FEEDFORWARD_DIM=Key(2048, at_least(1), "channels of the hidden layer of each layer"),
    NUM_ENCODER_LAYERS=Key(6, at_least(0), "layers of the encoder"),
    NUM_DECODER_LAYERS=Key(6, at_least(1), "layers of the decoder, each with all losses"),
    DROPOUT=Key(0.1, SHARE_BELOW_1, "share of the channels that a training drops in each layer"),
    **activation_keys("softmax"),
    CLASS_COST=Key(
        1.0,
        NOT_NEGATIVE,
        "weight of the probability in the matching; with a sigmoid, of the focal loss",
    ),
    L1_COST=Key(5.0, NOT_NEGATIVE, "weight of L1 in the matching"),
    GIOU_COST=Key(2.0, NOT_NEGATIVE, "weight of GIoU in the matching"),
    L1_WEIGHT=Key(
        5.0,
        NOT_NEGATIVE,
        "weight of the L1 loss of centre and sides in units of the image's width and height, which "
        "comes on top of MODEL.CRITERION's losses; 0 for none; what else is published is set in "
        "configs/detr/detr_R50.yaml",
    ),
)


def position_encoding(padding: Tensor, channels: int) -> Tensor:
    """Sines and cosines of where a feature is in its image, of many wavelengths.

    Args:
        padding: (N, H, W) bool, what is beyond each image.
        channels: D; half of them tell y, half x.

    Returns:
        (N, H x W, D).
    """
    half = channels // 2
    # Pairs of a sine and a cosine.
    wavelengths = 10000 ** (torch.arange(0, half, 2, device=padding.device) / half)
    encodings = []
    for dim in (1, 2):
        place = (~padding).cumsum(dim=dim)
        place = place / (place.amax(dim=dim, keepdim=True) + 1e-6) * (2 * math.pi)
        angles = place[..., None] / wavelengths
        encodings.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(3))
    return torch.cat(encodings, dim=3).flatten(1, 2)


class EncoderLayer(nn.TransformerEncoderLayer):
    """With the positions added to queries and keys, not to values (Appendix A.3)."""

    def forward(self, features: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """
        Args:
            features: (N, L, D).
            positions: (N, L, D).
            padding: (N, L) bool, the features that are not to be looked at.
        """
        query = features + positions
        attended, _ = self.self_attn(query, query, features, key_padding_mask=padding)
        features = self.norm1(features + self.dropout1(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(features))))
        return self.norm2(features + self.dropout2(hidden))


class DecoderLayer(nn.TransformerDecoderLayer):
    """Likewise, with learned positions of the objects (Appendix A.3)."""

    def forward(
        self, objects: Tensor, queries: Tensor, features: Tensor, positions: Tensor, padding: Tensor
    ) -> Tensor:
        """
        Args:
            objects: (N, Q, D).
            queries: (N, Q, D) their positions.
            features, positions, padding: as of :class:`EncoderLayer`.
        """
        query = objects + queries
        attended, _ = self.self_attn(query, query, objects)
        objects = self.norm1(objects + self.dropout1(attended))
        attended, _ = self.multihead_attn(
            objects + queries, features + positions, features, key_padding_mask=padding
        )
        objects = self.norm2(objects + self.dropout2(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(objects))))
        return self.norm3(objects + self.dropout3(hidden))


class DETRTransformer(nn.Module):
    """Encoder of image features, decoder of object queries."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        feedforward_channels: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dropout: float = 0.0,
    ):
        """
        Args:
            channels: D.
            num_heads: of all attentions; divides D.
            feedforward_channels: of the hidden layer of each layer.
            num_encoder_layers, num_decoder_layers: how many there are.
            dropout: in training, of each layer.
        """
        super().__init__()
        arguments = {
            "dim_feedforward": feedforward_channels, "dropout": dropout, "batch_first": True,
        }  # fmt: skip
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            EncoderLayer(channels, num_heads, **arguments) for _ in range(num_encoder_layers)
        )
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(
            DecoderLayer(channels, num_heads, **arguments) for _ in range(num_decoder_layers)
        )
        self.decoder.norm = nn.LayerNorm(channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, positions: Tensor, padding: Tensor, queries: Tensor
    ) -> Tensor:
        """(T, N, Q, D), of each decoder layer, of the queries (N, Q, D); for the rest see them."""
        for layer in self.encoder.layers:
            features = layer(features, positions, padding)
        objects, stages = torch.zeros_like(queries), []
        for layer in self.decoder.layers:
            objects = layer(objects, queries, features, positions, padding)
            stages.append(self.decoder.norm(objects))
        return torch.stack(stages)


class BoxMLP(nn.Module):
    """Three linear layers from the D channels of an object to its box."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(channels, channels), nn.Linear(channels, channels), nn.Linear(channels, 4)]
        )

    def forward(self, objects: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(objects)))))


@META_ARCH_REGISTRY.register()
class CorrdetDETR(Detector, nn.Module):
    """One query of many for each object, without NMS, trained by a Criterion at each decoder layer.

    Beside the Criterion's losses every layer has ``loss_l1``, of centre and sides in units of the
    image, as published. These are also what losses of deltas compare. The losses of all layers but
    the last, which detects, have the layer in their name: ``loss_cls_0``. With softmax cross
    entropy, ``BACKGROUND_WEIGHT`` 0.1 and GIoU of weight 2 they are the published ones.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: scores and IoUs of the queries that the matching trains, for beta_img.
    """

    num_classes_key = "MODEL.DETR.NUM_CLASSES"
    activation_key = "MODEL.DETR.ACTIVATION"
    sections = ("MODEL.DETR",)
    has_priors = False

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_feature: str,
        transformer: DETRTransformer,
        channels: int,
        num_classes: int,
        num_queries: int,
        matching_costs: dict[str, float],
        max_detections: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        criteria: Sequence[Criterion] = (),
        l1_weight: float = 5.0,
        activation: str = "softmax",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            backbone: of the image.
            in_feature: the name of its output that is used.
            transformer: see there.
            channels: D, its channels.
            num_classes: C.
            num_queries: Q.
            matching_costs: ``classification_weight``, ``l1_weight`` and ``giou_weight`` of
                :func:`corrdet.matching.hungarian_matching`.
            max_detections: of an image.
            pixel_mean, pixel_std: of each channel.
            criteria: the losses of each decoder layer; without, it can only detect.
            l1_weight: of the L1 loss; 0 for none.
            activation: of the class scores, "softmax" or "sigmoid".
            prior_prob: what scores are about before training, with a sigmoid.
        """
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.transformer = transformer
        self.input_proj = nn.Conv2d(backbone.output_shape()[in_feature].channels, channels, 1)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.class_embed = nn.Linear(channels, num_logits(activation, num_classes))
        if activation == "sigmoid":
            initialize_bias(self.class_embed, activation, prior_prob)
        self.bbox_embed = BoxMLP(channels)
        self.num_classes = num_classes
        self.matching_costs = matching_costs
        self.max_detections = max_detections
        self.criteria = nn.ModuleList(criteria)
        self.l1_weight = l1_weight
        self.activation = activation
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        node = cfg.MODEL.DETR
        if node.HIDDEN_DIM % (2 * node.NUM_HEADS) or node.HIDDEN_DIM % 4:
            raise ConfigError(
                "MODEL.DETR.HIDDEN_DIM must be divisible by 4 and by twice NUM_HEADS, got "
                f"{node.HIDDEN_DIM} and {node.NUM_HEADS}"
            )

    @classmethod
    def from_config(cls, cfg):
        cls.check_values(cfg)
        node = cfg.MODEL.DETR
        criteria = [cls.build_criterion(cfg) for _ in range(node.NUM_DECODER_LAYERS)]
        return {
            "backbone": build_backbone(cfg),
            "in_feature": node.IN_FEATURE,
            "transformer": DETRTransformer(
                node.HIDDEN_DIM,
                node.NUM_HEADS,
                node.FEEDFORWARD_DIM,
                node.NUM_ENCODER_LAYERS,
                node.NUM_DECODER_LAYERS,
                node.DROPOUT,
            ),
            "channels": node.HIDDEN_DIM,
            "num_classes": node.NUM_CLASSES,
            "num_queries": node.NUM_QUERIES,
            "matching_costs": matching_costs(node),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "criteria": criteria,
            "l1_weight": node.L1_WEIGHT,
            "activation": node.ACTIVATION,
            "prior_prob": node.PRIOR_PROB,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: of each image ``image``, (channels, H, W), in training ``instances``
                with ``gt_boxes`` and ``gt_classes``, and the ``height`` and ``width`` to detect in.

        Returns:
            in training the losses by name; else, of each image, ``instances``, and see the class.

        Raises:
            ValueError: training without ground truth.
        """
        images = batch_images(
            batched_inputs, self.pixel_mean, self.pixel_std, self.backbone.size_divisibility
        )
        gt_instances = ground_truth(batched_inputs, self.device, is_needed=self.training)
        all_logits, all_boxes = self.predict_stages(images)
        if self.training:
            return stage_losses(
                self.criteria,
                self.match_predictions(all_logits, all_boxes, gt_instances),
                objects_normalizer(gt_instances, self.device),
                self.l1_weight,
            )
        logits, boxes, outputs = all_logits[-1], all_boxes[-1], []
        for image, size, image_logits, image_boxes in zip(
            batched_inputs, images.image_sizes, logits, boxes, strict=True
        ):
            detected = self.detect(image_logits, image_boxes, size)
            height, width = image.get("height", size[0]), image.get("width", size[1])
            outputs.append({"instances": detector_postprocess(detected, height, width)})
        if gt_instances is not None:
            (matched,) = self.match_predictions(all_logits[-1:], all_boxes[-1:], gt_instances)
            add_positives(outputs, matched)
        return outputs

    def predict(self, images: ImageList) -> tuple[Tensor, Tensor]:
        """What the last decoder layer predicts: see :meth:`predict_stages`."""
        logits, boxes = self.predict_stages(images)
        return logits[-1], boxes[-1]

    def predict_stages(self, images: ImageList) -> tuple[Tensor, Tensor]:
        """What every decoder layer predicts.

        Letters: T layers, N images, Q queries, C classes.

        Returns:
            (T, N, Q, C) logits, (T, N, Q, C + 1) for a softmax, the last one of no object; and
            (T, N, Q, 4) boxes, XYXY in pixels; float32.
        """
        features = self.input_proj(self.backbone(images.tensor)[self.in_feature])
        padding = torch.ones(len(images), *images.tensor.shape[2:], device=self.device)
        for image_padding, (height, width) in zip(padding, images.image_sizes, strict=True):
            image_padding[:height, :width] = 0
        padding = F.interpolate(padding[:, None], size=features.shape[2:])[:, 0].bool()
        objects = self.transformer(
            features.flatten(2).transpose(1, 2),
            position_encoding(padding, features.shape[1]),
            padding.flatten(1),
            self.query_embed.weight.expand(len(images), -1, -1),
        )
        # Centre and sides, in units of the image.
        center, sides = self.bbox_embed(objects).float().sigmoid().split(2, dim=3)
        boxes = torch.cat([center - sides / 2, center + sides / 2], dim=3)
        extents = image_extents(images.image_sizes, boxes)
        return self.class_embed(objects).float(), boxes * extents[:, None]

    def detect(self, logits: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Instances:
        """The best class of each query, with a sigmoid the best pairs of a query and a class.

        There is no NMS, and no threshold of scores.

        Args:
            logits: (Q, C) of one image, or (Q, C + 1) for a softmax.
            boxes: (Q, 4).
            image_size: its height and width.
        """
        scores = class_scores(logits, self.activation)
        if self.activation == "softmax":
            scores, classes = scores.max(dim=1)
            queries = torch.arange(len(scores), device=scores.device)
        else:
            pairs = torch.arange(scores.numel(), device=scores.device)
            queries, classes = pairs // self.num_classes, pairs % self.num_classes
            scores = scores.flatten()
        scores, chosen = scores.topk(min(self.max_detections, len(scores)))
        result = Instances(image_size)
        result.pred_boxes = Boxes(boxes[queries[chosen]])
        result.scores = scores
        result.pred_classes = classes[chosen]
        return result

    def match_predictions(
        self, logits: Tensor, boxes: Tensor, gt_instances: Sequence[Instances]
    ) -> list[MatchedPredictions]:
        """One query for each ground truth at each layer (Sec. 3.1); see :func:`match_stages`.

        Args:
            logits, boxes: of :meth:`predict_stages`.
            gt_instances: the ground truth of the N images.
        """
        return match_stages(
            logits,
            boxes,
            gt_instances,
            self.matching_costs,
            activation=self.activation,
            has_centers=True,
        )
