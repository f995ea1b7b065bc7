"""The head of YOLACT (Bolya et al. 2019, Sec. 3.1 and 3.3): predictions and prototypes."""

from typing import NamedTuple

from torch import Tensor, nn

from corrdet.activation import initialize_bias, num_logits

from ..dense.detector import group_norm


class MaskPredictions(NamedTuple):
    """What YOLACT's head predicts; N images, A anchors of a location, C classes, K prototypes.

    Attributes:
        logits: per level (N, A x C, H, W), or A x (C + 1) for a softmax.
        deltas: per level (N, A x 4, H, W).
        coefficients: per level (N, A x K, H, W).
        prototypes: (N, K, 2 H, 2 W), of the first level.
        semantic: (N, C, H, W) logits of the semantic segmentation, of the first level; in training
            only.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    coefficients: list[Tensor]
    prototypes: Tensor
    semantic: Tensor | None


class YOLACTHead(nn.Module):
    """Classes, boxes and coefficients from one tower for all levels; prototypes from the first."""

    def __init__(
        self,
        *,
        channels: int,
        num_anchors: int,
        num_classes: int,
        num_prototypes: int,
        protonet_dim: int,
        norm: str = "",
        activation: str = "softmax",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            channels: of all levels.
            num_anchors: A, of each location.
            num_classes: C.
            num_prototypes: K.
            protonet_dim: channels of the layers that the prototypes come from.
            activation: of the class scores, "softmax" or "sigmoid".
            prior_prob: what scores are about before training, with a sigmoid.
            norm: of the layers before the predictions and the prototypes; "" for none, "GN".
        """
        super().__init__()

        def conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Conv2d:
            return nn.Conv2d(in_channels, out_channels, size, padding=size // 2)

        def layer(in_channels: int, out_channels: int) -> nn.Sequential:
            normalize = [group_norm(out_channels)] if norm == "GN" else []
            return nn.Sequential(conv(in_channels, out_channels), *normalize, nn.ReLU())

        # Fig. 4.
        self.tower = layer(channels, channels)
        self.cls_score = conv(channels, num_anchors * num_logits(activation, num_classes))
        self.bbox_pred = conv(channels, num_anchors * 4)
        self.coefficients = conv(channels, num_anchors * num_prototypes)
        # Fig. 3.
        self.protonet = nn.Sequential(
            layer(channels, protonet_dim),
            layer(protonet_dim, protonet_dim),
            layer(protonet_dim, protonet_dim),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            layer(protonet_dim, protonet_dim),
            conv(protonet_dim, num_prototypes, size=1),
            nn.ReLU(),
        )
        self.semantic = conv(channels, num_classes, size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        initialize_bias(self.cls_score, activation, prior_prob)

    def forward(self, features: list[Tensor]) -> MaskPredictions:
        """``features``: per level, (N, channels, H, W), the largest first."""
        towers = [self.tower(feature) for feature in features]
        return MaskPredictions(
            [self.cls_score(tower) for tower in towers],
            [self.bbox_pred(tower) for tower in towers],
            [self.coefficients(tower).tanh() for tower in towers],
            self.protonet(features[0]),
            self.semantic(features[0]) if self.training else None,
        )
