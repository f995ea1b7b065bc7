"""The original DETR (github.com/facebookresearch/detr)."""

import re
from collections.abc import Mapping

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from corrdet.engine.weights import CheckpointError

BACKBONE = r"backbone\.0\.body\."
BLOCK = BACKBONE + r"layer(\d)\.(\d+)\."
# Patterns of whole names, and what they become; {} is the number of the stage, from 2.
RENAMED = [
    (BACKBONE + r"conv1\.(.+)", r"backbone.stem.conv1.\1"),
    (BACKBONE + r"bn1\.(.+)", r"backbone.stem.conv1.norm.\1"),
    (BLOCK + r"conv(\d)\.(.+)", r"backbone.res{}.\2.conv\3.\4"),
    (BLOCK + r"bn(\d)\.(.+)", r"backbone.res{}.\2.conv\3.norm.\4"),
    (BLOCK + r"downsample\.0\.(.+)", r"backbone.res{}.\2.shortcut.\3"),
    (BLOCK + r"downsample\.1\.(.+)", r"backbone.res{}.\2.shortcut.norm.\3"),
    (r"(transformer\.(?:encoder|decoder)\..+)", r"\1"),
    (r"((?:input_proj|query_embed|class_embed|bbox_embed\.layers\.[012])\..+)", r"\1"),
]
REQUIRED = [
    "query_embed.weight",
    "input_proj.weight",
    "input_proj.bias",
    "transformer.decoder.norm.weight",
    "transformer.decoder.norm.bias",
    "class_embed.weight",
    "class_embed.bias",
]
NUM_IDS = 91
COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under corrdet's names.

    Args:
        weights: the original's, by name.

    Raises:
        CheckpointError: a name that DETR does not have, one that it has and these have not, or a
            classifier of other classes than COCO's.
    """
    converted = {}
    for name, value in weights.items():
        for pattern, replacement in RENAMED:
            match = re.fullmatch(pattern, name)
            if match:
                stage = int(match[1]) + 1 if "{}" in replacement else None
                converted[match.expand(replacement).format(stage)] = value
                break
        else:
            raise CheckpointError(f"{name!r} is no parameter of the original DETR")
    for name in REQUIRED:
        if name not in converted:
            raise CheckpointError(f"it has no {name}: it is of another detector, or incomplete")
    for name in ("class_embed.weight", "class_embed.bias"):
        if len(converted[name]) != NUM_IDS + 1:
            raise CheckpointError(
                f"{name} is of {len(converted[name])} classes, expected the {NUM_IDS} ids of COCO "
                "and no object"
            )
        # The last one is that of no object.
        converted[name] = converted[name][[*COCO_IDS, NUM_IDS]]
    return converted
