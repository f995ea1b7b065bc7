"""MobileNetV2, ConvNeXt and Swin of torchvision, and of timm, for
:class:`~corrdet.modeling.backbones.torchvision_networks.TorchvisionStages`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from corrdet.engine.weights import CheckpointError
from corrdet.modeling.backbones.torchvision_networks import BEGINS, STAGES

# timm's blocks of MobileNetV2 in each of its stages, by the number of the first in torchvision.
_TIMM_MOBILENET = (1, 2, 4, 7, 11, 14, 17)
_TIMM_MOBILENET_BLOCK = {
    "conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"
}  # fmt: skip
_TIMM_MOBILENET_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_TIMM_CONVNEXT_BLOCK = {
    "conv_dw": "block.0", "norm": "block.2", "mlp.fc1": "block.3", "mlp.fc2": "block.5"
}  # fmt: skip


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by their names in ``TorchvisionStages``, without the classifier.

    Args:
        weights: torchvision's, by name.

    Raises:
        CheckpointError: a name that these networks do not have.
    """
    layers = {
        int(match[1])
        for match in (re.match(r"features\.(\d+)\.", name) for name in weights)
        if match
    }
    begins = next((b for b in BEGINS if max(layers, default=0) in (b[-1], b[-1] - 1)), None)
    if begins is None:
        raise CheckpointError(
            "it has features.0 and so on, but is none of torchvision's MobileNetV2, ConvNeXt and "
            f"Swin: its last layer is features.{max(layers, default=0)}"
        )
    converted = {}
    for name, value in weights.items():
        match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
        if not match or name.endswith("num_batches_tracked"):
            continue  # the classifier, and counters
        for stage, first, behind in zip(STAGES, begins[:-1], begins[1:], strict=True):
            if first <= int(match[1]) < behind:
                converted[f"{stage}.{match[1]}.{match[2]}"] = value
    return converted


def convert_timm_mobilenet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for timm's ``mobilenetv2_100``."""
    renamed = {}
    for name, value in weights.items():
        layer, _, parameter = name.rpartition(".")
        if layer in ("conv_stem", "bn1"):
            new = "0.0" if layer == "conv_stem" else "0.1"
        elif match := re.fullmatch(r"blocks\.(\d)\.(\d+)\.(\w+)", layer):
            stage, block = int(match[1]), int(match[2])
            parts = _TIMM_MOBILENET_BLOCK if stage else _TIMM_MOBILENET_FIRST
            if stage >= len(_TIMM_MOBILENET) or match[3] not in parts:
                raise CheckpointError(f"{name!r} is no parameter of timm's MobileNetV2")
            new = f"{_TIMM_MOBILENET[stage] + block}.conv.{parts[match[3]]}"
        else:
            continue
        renamed[f"features.{new}.{parameter}"] = value
    return convert(renamed)


def convert_timm_convnext(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for timm's ``convnext_tiny`` and its likes."""
    renamed = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"stem\.([01])\.(\w+)", name):
            renamed[f"features.0.{match[1]}.{match[2]}"] = value
        elif match := re.fullmatch(r"stages\.(\d)\.downsample\.([01])\.(\w+)", name):
            renamed[f"features.{2 * int(match[1])}.{match[2]}.{match[3]}"] = value
        elif match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", name):
            begin = f"features.{2 * int(match[1]) + 1}.{match[2]}"
            layer, _, parameter = match[3].rpartition(".")
            if match[3] == "gamma":
                renamed[f"{begin}.layer_scale"] = value.reshape(-1, 1, 1)
            elif layer in _TIMM_CONVNEXT_BLOCK:
                renamed[f"{begin}.{_TIMM_CONVNEXT_BLOCK[layer]}.{parameter}"] = value
            else:
                raise CheckpointError(f"{name!r} is no parameter of ConvNeXt with linear layers")
    return convert(renamed)


def convert_timm_swin(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for timm's ``swin_tiny_patch4_window7_224`` and its likes, and Swin's authors'.

    These have the merging of patches behind the blocks of a layer, timm before those of the next.
    """
    is_authors = "layers.0.downsample.norm.weight" in weights
    renamed = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"patch_embed\.(proj|norm)\.(\w+)", name):
            renamed[f"features.0.{0 if match[1] == 'proj' else 2}.{match[2]}"] = value
        elif match := re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name):
            renamed[f"features.{2 * (int(match[1]) + is_authors)}.{match[2]}"] = value
        elif match := re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\.(.+)", name):
            if match[3] == "attn_mask":  # computed from the size of the image
                continue
            rest = match[3].replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
            if rest == "attn.relative_position_index":
                value = value.flatten()
            renamed[f"features.{2 * int(match[1]) + 1}.{match[2]}.{rest}"] = value
    return convert(renamed)
