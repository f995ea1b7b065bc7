"""Heads of SSD (Liu et al. 2016), DSSD (Fu et al. 2017) and RefineDet (Zhang et al. 2018)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from corrdet.activation import initialize_bias

from ..dense.detector import DensePredictions


class RefinedPredictions(NamedTuple):
    """What RefineDet's head predicts, per level; N images, A anchors of a location.

    Attributes:
        logits: (N, A x K, H, W) of the second step.
        deltas: (N, A x 4, H, W) of the second step, which change refined anchors.
        objectness: (N, A, H, W) logits of an object, of the first step.
        refinements: (N, A x 4, H, W) deltas of the first step, which change the anchors.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    objectness: list[Tensor]
    refinements: list[Tensor]


class SSDHead(nn.Module):
    """One convolution for the classes and one for the boxes, on each level its own."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        num_priors: Sequence[int],
        num_logits: int,
        prior_prob: float | None = None,
    ):
        """
        Args:
            channels: of each level.
            num_priors: A of a location, of each level.
            num_logits: K of a prior.
            prior_prob: what all scores are about before training, for a sigmoid; None: logits
                start near 0.
        """
        super().__init__()
        self.cls_score = _predictors(channels, [count * num_logits for count in num_priors])
        self.bbox_pred = _predictors(channels, [count * 4 for count in num_priors])
        if prior_prob is not None:
            for conv in self.cls_score:
                initialize_bias(conv, "sigmoid", prior_prob)

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """``features``: per level, (N, channels, H, W)."""
        logits = [conv(x) for conv, x in zip(self.cls_score, features, strict=True)]
        deltas = [conv(x) for conv, x in zip(self.bbox_pred, features, strict=True)]
        return DensePredictions(logits, deltas)


def _predictors(channels: Sequence[int], out_channels: Sequence[int]) -> nn.ModuleList:
    convs = nn.ModuleList(
        nn.Conv2d(before, after, kernel_size=3, padding=1)
        for before, after in zip(channels, out_channels, strict=True)
    )
    for conv in convs:
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(conv.bias)
    return convs


def normed_conv(
    in_channels: int, out_channels: int, norm: str, kernel_size: int = 3, **kwargs
) -> Conv2d:
    """A convolution that keeps the size but for its stride; ``kwargs`` as Detectron2's Conv2d."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class DeconvolutionModule(nn.Module):
    """Multiplies a level by the next deeper one, deconvolved (DSSD, Fig. 3)."""

    def __init__(self, in_channels: int, channels: int, norm: str, has_deeper: bool):
        """
        Args:
            in_channels: of the level.
            channels: of the output, and of the deeper level.
            norm: of the convolutions.
            has_deeper: False for the deepest level.
        """
        super().__init__()
        self.lateral = nn.Sequential(
            normed_conv(in_channels, channels, norm),
            nn.ReLU(),
            normed_conv(channels, channels, norm),
        )
        self.deeper = None
        if has_deeper:
            self.deeper = nn.Sequential(
                nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
                normed_conv(channels, channels, norm),
            )
            if norm:
                # Factors near 1 at first: products of noise over all levels would train slowly.
                nn.init.constant_(self.deeper[1].norm.weight, 0.1)
                nn.init.ones_(self.deeper[1].norm.bias)

    def forward(self, feature: Tensor, deeper: Tensor | None) -> Tensor:
        """
        Args:
            feature: (N, in_channels, H, W).
            deeper: (N, channels, ceil(H / 2), ceil(W / 2)), or None on the deepest level.

        Returns:
            (N, channels, H, W).
        """
        feature = self.lateral(feature)
        if self.deeper is not None:
            feature = feature * _cropped(self.deeper(deeper), feature)
        return F.relu(feature)


class TransferConnectionBlock(nn.Module):
    """Adds the next deeper level, deconvolved, to a level (RefineDet, Fig. 2)."""

    def __init__(self, in_channels: int, channels: int, norm: str, has_deeper: bool):
        """As :class:`DeconvolutionModule`."""
        super().__init__()
        self.lateral = nn.Sequential(
            normed_conv(in_channels, channels, norm),
            nn.ReLU(),
            normed_conv(channels, channels, norm),
        )
        self.deeper = None
        if has_deeper:
            self.deeper = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.output = nn.Sequential(nn.ReLU(), normed_conv(channels, channels, norm), nn.ReLU())

    def forward(self, feature: Tensor, deeper: Tensor | None) -> Tensor:
        """As :meth:`DeconvolutionModule.forward`."""
        feature = self.lateral(feature)
        if self.deeper is not None:
            feature = feature + _cropped(self.deeper(deeper), feature)
        return self.output(feature)


def _cropped(upsampled: Tensor, like: Tensor) -> Tensor:
    """Without the last row or column, where the size halved to the deeper level was odd."""
    return upsampled[..., : like.shape[-2], : like.shape[-1]]


class TopDownPath(nn.Module):
    """Carries what deeper levels know to the shallower ones, with a block on each level."""

    def __init__(
        self, block: type[nn.Module], in_channels: Sequence[int], channels: int, norm: str
    ):
        """
        Args:
            block: :class:`DeconvolutionModule` or :class:`TransferConnectionBlock`.
            in_channels: of each level, from the shallowest.
            channels: of each output.
            norm: of the convolutions.
        """
        super().__init__()
        last = len(in_channels) - 1
        self.blocks = nn.ModuleList(
            block(level_channels, channels, norm, has_deeper=level < last)
            for level, level_channels in enumerate(in_channels)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Per level (N, in_channels, H, W) -> per level (N, channels, H, W)."""
        outputs, deeper = [], None
        for block, feature in zip(reversed(self.blocks), reversed(features), strict=True):
            deeper = block(feature, deeper)
            outputs.append(deeper)
        return outputs[::-1]


class PredictionModule(nn.Module):
    """The residual block before the predictors of a level (DSSD, Fig. 2, variant c)."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        """
        Args:
            in_channels: of the level.
            channels: of the output; a quarter of them in between.
            norm: of the convolutions.
        """
        super().__init__()
        between = channels // 4
        self.residual = nn.Sequential(
            normed_conv(in_channels, between, norm, kernel_size=1),
            nn.ReLU(),
            normed_conv(between, between, norm, kernel_size=1),
            nn.ReLU(),
            normed_conv(between, channels, norm, kernel_size=1),
        )
        self.shortcut = normed_conv(in_channels, channels, norm, kernel_size=1)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        return F.relu(self.residual(feature) + self.shortcut(feature))


class DSSDHead(nn.Module):
    """SSD's head after deconvolution modules and prediction modules."""

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        deconvolution_channels: int,
        prediction_channels: int,
        norm: str,
        num_priors: Sequence[int],
        num_logits: int,
        prior_prob: float | None = None,
    ):
        """
        Args:
            input_shape: of each level, from the shallowest.
            deconvolution_channels: of the deconvolution modules.
            prediction_channels: of the prediction modules.
            norm: of the convolutions of both.
            num_priors, num_logits, prior_prob: as :class:`SSDHead`.
        """
        super().__init__()
        self.top_down = TopDownPath(
            DeconvolutionModule,
            [shape.channels for shape in input_shape],
            deconvolution_channels,
            norm,
        )
        self.prediction_modules = nn.ModuleList(
            PredictionModule(deconvolution_channels, prediction_channels, norm) for _ in input_shape
        )
        self.predictors = SSDHead(
            channels=[prediction_channels] * len(input_shape),
            num_priors=num_priors,
            num_logits=num_logits,
            prior_prob=prior_prob,
        )

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """As :meth:`SSDHead.forward`."""
        features = self.top_down(features)
        modules = zip(self.prediction_modules, features, strict=True)
        return self.predictors([module(feature) for module, feature in modules])


class RefineDetHead(nn.Module):
    """Two of SSD's heads: one on the backbone, one behind transfer connection blocks.

    The first, the anchor refinement module, tells objects from background and refines the anchors.
    The second, the object detection module, classifies and refines what the first one gives.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        connection_channels: int,
        norm: str,
        num_priors: Sequence[int],
        num_logits: int,
        prior_prob: float | None = None,
    ):
        """
        Args:
            input_shape: of each level, from the shallowest.
            connection_channels: of the transfer connection blocks.
            norm: of their convolutions.
            num_priors, num_logits, prior_prob: of the second step, as :class:`SSDHead`.
        """
        super().__init__()
        channels = [shape.channels for shape in input_shape]
        self.anchor_refinement = SSDHead(channels=channels, num_priors=num_priors, num_logits=1)
        self.top_down = TopDownPath(TransferConnectionBlock, channels, connection_channels, norm)
        self.object_detection = SSDHead(
            channels=[connection_channels] * len(channels),
            num_priors=num_priors,
            num_logits=num_logits,
            prior_prob=prior_prob,
        )

    def forward(self, features: list[Tensor]) -> RefinedPredictions:
        """``features``: per level, (N, channels, H, W)."""
        first = self.anchor_refinement(features)
        second = self.object_detection(self.top_down(features))
        return RefinedPredictions(second.logits, second.deltas, first.logits, first.deltas)
