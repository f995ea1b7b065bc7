"""torchvision's MobileNetV2, ConvNeXt and Swin as backbones with feature pyramids.

Their ImageNet weights are loaded by ``MODEL.WEIGHTS torchvision://NAME``. MobileNetV2 (Sandler et
al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018) is small enough for two
CPU cores. ConvNeXt (Liu et al., CVPR 2022) and Swin (Liu et al., ICCV 2021) have a layer norm at
each output, as their authors' detectors. The layers are torchvision's, in five stages as
Detectron2's ``ResNet`` has them.
"""

from collections.abc import Sequence
from functools import partial

import torchvision
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from corrdet.config_keys import check_keys, declare
from corrdet.errors import ConfigError
from corrdet.options import Key, one_of

from .pyramids import pyramid, retinanet_pyramid

STAGES = ("stem", "res2", "res3", "res4", "res5")
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Where each stage begins in torchvision's ``features``, and the first layer that is not used:
# MobileNetV2's last one, a convolution to 1280 channels, is of the classifier.
_MOBILENET = (0, 2, 4, 7, 14, 18)
_TRANSFORMER_LIKE = (0, 1, 2, 4, 6, 8)
BEGINS = (_MOBILENET, _TRANSFORMER_LIKE)
# Begins of stages, channels of res2 to res5.
NETWORKS = {
    "mobilenet_v2": (_MOBILENET, (24, 32, 96, 320)),
    "convnext_tiny": (_TRANSFORMER_LIKE, (96, 192, 384, 768)),
    "convnext_small": (_TRANSFORMER_LIKE, (96, 192, 384, 768)),
    "convnext_base": (_TRANSFORMER_LIKE, (128, 256, 512, 1024)),
    "swin_t": (_TRANSFORMER_LIKE, (96, 192, 384, 768)),
    "swin_s": (_TRANSFORMER_LIKE, (96, 192, 384, 768)),
    "swin_b": (_TRANSFORMER_LIKE, (128, 256, 512, 1024)),
}

declare(
    "MODEL.TORCHVISION",
    "networks of torchvision as backbones",
    NETWORK=Key(
        "convnext_tiny",
        one_of(tuple(NETWORKS)),
        "of build_torchvision_fpn_backbone and build_retinanet_torchvision_fpn_backbone",
    ),
    NORM=Key(
        "FrozenBN",
        one_of(("FrozenBN", "BN", "SyncBN")),
        "of MobileNetV2: 'FrozenBN' keeps the statistics of the weights, 'BN' and 'SyncBN' go on "
        "with those of the batches; ConvNeXt and Swin have layer norms",
    ),
)


class TorchvisionStages(Backbone):
    """A classifier of torchvision without its head, as stages ``stem`` and ``res2`` to ``res5``.

    Layers have torchvision's numbers: MobileNetV2's ``features.4.conv.0.0`` is ``res3.4.conv.0.0``.
    """

    def __init__(
        self,
        network: str,
        out_features: Sequence[str],
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ):
        """
        Args:
            network: one of ``NETWORKS``.
            out_features: outputs, among ``res2`` to ``res5``.
            norm: as ``MODEL.TORCHVISION.NORM``.
            freeze_at: so many stages are not trained, the stem first; their norms are frozen.
        """
        super().__init__()
        begins, channels = NETWORKS[network]
        self.stage_names = list(STAGES[1:])
        self._channels = dict(zip(self.stage_names, channels, strict=True))
        self._out_features = list(out_features)
        self._is_channels_last = network.startswith("swin")
        arguments = {}
        if network == "mobilenet_v2":
            arguments["norm_layer"] = partial(_norm, norm)
        layers = getattr(torchvision.models, network)(weights=None, **arguments).features
        for name, first, behind in zip(STAGES, begins[:-1], begins[1:], strict=True):
            self.add_module(name, layers[first:behind])  # the slice keeps the layers' numbers
        if network != "mobilenet_v2":
            for name in self._out_features:
                self.add_module(f"{name}_norm", nn.LayerNorm(self._channels[name]))
        for name in STAGES[:freeze_at]:
            stage = FrozenBatchNorm2d.convert_frozen_batchnorm(getattr(self, name))
            self.add_module(name, stage.requires_grad_(False))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W), RGB, normalized by ImageNet's mean and deviation.

        Returns:
            output -> features (N, channels, ceil(H / stride), ceil(W / stride)); ConvNeXt rounds
            down.
        """
        features, outputs = images, {}
        for name in STAGES:
            features = getattr(self, name)(features)
            if name in self._out_features:
                outputs[name] = self._output(name, features)
        return outputs

    def _output(self, name: str, features: Tensor) -> Tensor:
        norm = getattr(self, f"{name}_norm", None)
        if norm is None:
            return features
        if not self._is_channels_last:
            features = features.permute(0, 2, 3, 1)
        return norm(features).permute(0, 3, 1, 2).contiguous()

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._channels[name], stride=STRIDES[name])
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        return STRIDES["res5"]


def _norm(name: str, channels: int) -> nn.Module:
    return get_norm(name, channels)


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenet_v2_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """MobileNetV2 and a feature pyramid with the levels of dense detectors.

    Reads ``MODEL.TORCHVISION.NORM``, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN``.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ConfigError: images have other than three channels.
    """
    return retinanet_pyramid(cfg, _network(cfg, input_shape, "mobilenet_v2"))


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    return pyramid(cfg, _network(cfg, input_shape, "mobilenet_v2"), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_torchvision_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``MODEL.TORCHVISION.NETWORK`` and a feature pyramid with the levels of dense detectors.

    Returns:
        backbone with the outputs p3..p7, strides 8..128.

    Raises:
        ConfigError: images have other than three channels.
    """
    return retinanet_pyramid(cfg, _network(cfg, input_shape, cfg.MODEL.TORCHVISION.NETWORK))


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """The same with the levels of region-based detectors.

    Returns:
        backbone with the outputs p2..p6, strides 4..64; ``MODEL.FPN.IN_FEATURES`` are res2 to res5.
    """
    bottom_up = _network(cfg, input_shape, cfg.MODEL.TORCHVISION.NETWORK)
    return pyramid(cfg, bottom_up, LastLevelMaxPool())


def _network(cfg, input_shape: ShapeSpec, network: str) -> TorchvisionStages:
    check_keys(cfg, "MODEL.TORCHVISION")
    if input_shape.channels != 3:
        raise ConfigError(
            f"{cfg.MODEL.BACKBONE.NAME} takes images of 3 channels, but MODEL.PIXEL_MEAN has "
            f"{input_shape.channels} value(s)"
        )
    return TorchvisionStages(
        network,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.TORCHVISION.NORM,
        cfg.MODEL.BACKBONE.FREEZE_AT,
    )
