"""The head of detectors with one prior per location: FCOS, FoveaBox, ATSS, PAA."""

import math
from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn


class DenseHead(RetinaNetHead):
    """RetinaNet's head with one prior per location, GroupNorm, and what its successors added.

    Towers, classifier, box regression and their initial weights are RetinaNet's, whose names of
    weights this has too.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str = "GN",
        prior_prob: float = 0.01,
        has_quality: bool = False,
        has_scales: bool = False,
    ):
        """
        Args:
            input_shape: of each level.
            num_classes: C.
            conv_dims: channels of each convolution of the towers.
            norm: of the towers; as Detectron2's ``get_norm``, but "GN" makes fewer groups than 32
                where the channels ask for it.
            prior_prob: what all scores are about before training.
            has_quality: a third output, one logit per location from the box tower: of centerness
                for FCOS and ATSS, of the IoU for PAA.
            has_scales: a learned factor of the box regression for each level, 1 at first (FCOS,
                ATSS, PAA).
        """
        super().__init__(
            input_shape=list(input_shape),
            num_classes=num_classes,
            num_anchors=1,
            conv_dims=list(conv_dims),
            # Detectron2's head tries the norm with one channel, which its own "GN" refuses.
            norm=group_norm if norm == "GN" else norm,
            prior_prob=prior_prob,
        )
        self.quality = None
        if has_quality:
            self.quality = nn.Conv2d(conv_dims[-1], 1, kernel_size=3, padding=1)
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.zeros_(self.quality.bias)
        self.scales = nn.Parameter(torch.ones(len(input_shape))) if has_scales else None

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """
        Args:
            features: per level, (N, channels, H, W), as many as ``input_shape`` had.

        Returns:
            per level: logits (N, C, H, W); deltas (N, 4, H, W); and with ``has_quality`` logits of
            the quality (N, 1, H, W).
        """
        assert len(features) == self._num_features
        logits, deltas, qualities = [], [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            of_level = self.bbox_pred(box_feature)
            deltas.append(of_level if self.scales is None else of_level * self.scales[level])
            if self.quality is not None:
                qualities.append(self.quality(box_feature))
        return (logits, deltas) if self.quality is None else (logits, deltas, qualities)


def group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups, or of as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def centerness(priors: Tensor, gt_boxes: Tensor) -> Tensor:
    """How near a location is to the centre of its ground truth (Tian et al. 2019, Eq. 3).

    Args:
        priors: (P, 4) boxes, XYXY, whose centres are the locations.
        gt_boxes: (P, 4) boxes, XYXY, the ground truth of each.

    Returns:
        (P,) 1 at the centre, 0 at the sides and outside.
    """
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    to_start, to_end = centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers
    shorter, longer = torch.minimum(to_start, to_end), torch.maximum(to_start, to_end)
    inside = (shorter > 0).all(dim=1)
    return torch.where(inside, (shorter / longer).prod(dim=1), 0.0).sqrt()
