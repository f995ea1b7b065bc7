"""Res2Net's blocks and stem, for Detectron2's ``ResNet``.

Source: Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 43(2), 2021, Sec. 3.1,
in the version that its authors published as v1b: with the stem and the pooled shortcuts of ResNet-D
(He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019).
``tools/convert_backbone.py`` converts their weights.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from torch import Tensor, nn

from .deformable import make_deformable, split_offsets


class Res2NetStem(CNNBlockBase):
    """Three 3x3 convolutions and a max-pooling, of stride 4 together."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        """
        Args:
            in_channels: of the images.
            out_channels: the first two convolutions have half as many.
            norm: of all convolutions, see ``detectron2.layers.get_norm``.
        """
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        self.conv1 = _conv(in_channels, half, 3, norm, stride=2)
        self.conv2 = _conv(half, half, 3, norm)
        self.conv3 = _conv(half, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Res2NetBlock(CNNBlockBase):
    """A bottleneck of parts, each convolved together with what comes of the part before.

    With parts x_1 .. x_s: y_i = K_i(x_i + y_{i-1}), and the last part goes on as it is. In Eq. 1 of
    the paper it is the first; the weights are of networks in which it is the last. The first block
    of a stage, where the number of channels changes, adds nothing and pools the last part.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        scale: int = 4,
        stride: int = 1,
        norm: str = "BN",
        deformable: bool = False,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        """
        Args:
            in_channels, out_channels: of the block.
            bottleneck_channels: of all parts together.
            scale: number of parts, s, at least 2.
            stride: of the 3x3 convolutions and the shortcut.
            norm: of all convolutions, see ``detectron2.layers.get_norm``.
            deformable: whether the 3x3 convolutions are.
            deform_modulated, deform_num_groups: see :func:`~.deformable.make_deformable`.

        Raises:
            ValueError: if the channels cannot be split into ``scale`` parts.
        """
        super().__init__(in_channels, out_channels, stride)
        if scale < 2 or bottleneck_channels % scale:
            raise ValueError(
                f"expected at least 2 parts of as many channels each, got {bottleneck_channels} "
                f"channels and scale {scale}"
            )
        width = bottleneck_channels // scale
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm)
        self.convs = nn.ModuleList(
            _conv(width, width, 3, norm, stride=stride) for _ in range(scale - 1)
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, norm)
        self.convs_offset = None
        if deformable:
            pairs = [make_deformable(c, deform_modulated, deform_num_groups) for c in self.convs]
            self.convs_offset, self.convs = map(nn.ModuleList, zip(*pairs, strict=True))
        self.deform_modulated = deform_modulated

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = F.relu_(self.conv1(x)).chunk(len(self.convs) + 1, dim=1)
        outputs = []
        for index, part in enumerate(parts):
            if self.shortcut is None and outputs:
                part = part + outputs[-1]
            outputs.append(F.relu_(self._convolve(index, part)))
        shortcut = x
        if self.shortcut is not None:
            last = F.avg_pool2d(last, kernel_size=3, stride=self.stride, padding=1)
            # The last row and column of odd sizes are pooled on their own.
            shortcut = self.shortcut(F.avg_pool2d(x, self.stride, ceil_mode=True))
        return F.relu_(self.conv3(torch.cat([*outputs, last], dim=1)) + shortcut)

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        if self.convs_offset is None:
            return self.convs[index](x)
        predicted = self.convs_offset[index](x)
        return self.convs[index](x, *split_offsets(predicted, self.deform_modulated))


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    weight_init.c2_msra_fill(conv)
    return conv
