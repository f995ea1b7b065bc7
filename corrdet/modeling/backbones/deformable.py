"""Residual blocks with deformable convolutions, without Detectron2's compiled part.

Source: Zhu et al., "Deformable ConvNets v2", CVPR 2019, Eq. 1; without modulation Dai et al.,
"Deformable Convolutional Networks", ICCV 2017. Parameters have the names and layout of those of
Detectron2's ``DeformBottleneckBlock``, so that its checkpoints load; the operator is torchvision's,
which runs on CPUs too.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(Conv2d):
    """Detectron2's ``Conv2d`` at positions that are moved, its values there weighted."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (N, C, H, W).
            offset: (N, 2 G K, H', W') of the K taps of the kernel and G groups of channels, in
                pixels: y and x of the first tap, of the second, ...
            mask: (N, G K, H', W') weights of the taps, or None for 1.

        Returns:
            (N, C', H', W'), of the dtype of ``x``. Computed in float32 at least: positions in half
            precision would be off by pixels.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = deform_conv2d(
            x.to(dtype),
            offset.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=None if mask is None else mask.to(dtype),
        ).to(x.dtype)
        return out if self.norm is None else self.norm(out)


def make_deformable(conv: Conv2d, modulated: bool, num_groups: int) -> tuple[Conv2d, nn.Module]:
    """A deformable convolution in place of a plain one, whose weights and norm it takes over.

    Args:
        conv: the plain one.
        modulated: whether taps are weighted (v2).
        num_groups: groups of channels with offsets of their own.

    Returns:
        the convolution that predicts its offsets, all 0 at first, and the deformable one.
    """
    geometry = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
    }
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    offset = Conv2d(conv.in_channels, (3 if modulated else 2) * taps * num_groups, **geometry)
    nn.init.zeros_(offset.weight)
    nn.init.zeros_(offset.bias)
    deformable = DeformableConv2d(
        conv.in_channels,
        conv.out_channels,
        groups=conv.groups,
        bias=conv.bias is not None,
        norm=conv.norm,
        **geometry,
    )
    deformable.load_state_dict(conv.state_dict())
    return offset, deformable


def split_offsets(predicted: Tensor, modulated: bool) -> tuple[Tensor, Tensor | None]:
    """Offsets and mask of :class:`DeformableConv2d` from what the convolution for them predicts.

    Args:
        predicted: (N, 3 G K, H', W') if ``modulated``: two thirds are offsets, the last one logits
            of the mask. (N, 2 G K, H', W') offsets if not.
    """
    if not modulated:
        return predicted, None
    third = predicted.shape[1] // 3
    offset, mask = predicted.split([2 * third, third], dim=1)
    return offset, mask.sigmoid()


class DeformableBottleneckBlock(BottleneckBlock):
    """Detectron2's bottleneck block with a deformable 3x3 convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        **arguments,
    ) -> None:
        """
        Args:
            in_channels, out_channels: of the block.
            deform_modulated, deform_num_groups: see :func:`make_deformable`.
            arguments: those of Detectron2's ``BottleneckBlock``.
        """
        super().__init__(in_channels, out_channels, **arguments)
        self.deform_modulated = deform_modulated
        self.conv2_offset, self.conv2 = make_deformable(
            self.conv2, deform_modulated, deform_num_groups
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        offset, mask = split_offsets(self.conv2_offset(out), self.deform_modulated)
        out = F.relu_(self.conv2(out, offset, mask))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv3(out) + shortcut)
