"""The original Sparse R-CNN (github.com/PeizeSun/SparseR-CNN)."""

import re
from collections.abc import Mapping

from torch import Tensor

from corrdet.engine.weights import CheckpointError

STAGE = r"head\.head_series\.(\d+)\."
# Patterns of whole names, and what they become.
RENAMED = [
    (r"(backbone\..+)", r"\1"),
    (r"init_proposal_boxes\.weight", "proposal_boxes"),
    (r"init_proposal_features\.weight", "proposal_features"),
    (STAGE + r"self_attn\.(.+)", r"stages.\1.attention.\2"),
    (STAGE + r"norm1\.(.+)", r"stages.\1.attention_norm.\2"),
    (STAGE + r"inst_interact\.dynamic_layer\.(.+)", r"stages.\1.interaction.weights.\2"),
    (STAGE + r"inst_interact\.(norm[12]\..+)", r"stages.\1.interaction.\2"),
    (STAGE + r"inst_interact\.out_layer\.(.+)", r"stages.\1.interaction.output.\2"),
    (STAGE + r"inst_interact\.norm3\.(.+)", r"stages.\1.interaction.output_norm.\2"),
    (STAGE + r"norm2\.(.+)", r"stages.\1.interaction_norm.\2"),
    (STAGE + r"linear1\.(.+)", r"stages.\1.feedforward.0.\2"),
    (STAGE + r"linear2\.(.+)", r"stages.\1.feedforward.2.\2"),
    (STAGE + r"norm3\.(.+)", r"stages.\1.feedforward_norm.\2"),
    (STAGE + r"cls_module\.(.+)", r"stages.\1.cls_tower.\2"),
    (STAGE + r"reg_module\.(.+)", r"stages.\1.box_tower.\2"),
    (STAGE + r"class_logits\.(.+)", r"stages.\1.cls_score.\2"),
    (STAGE + r"bboxes_delta\.(.+)", r"stages.\1.bbox_pred.\2"),
]


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters under corrdet's names.

    Args:
        weights: the original's, by name.

    Raises:
        CheckpointError: a name that Sparse R-CNN does not have, or a softmax classifier.
    """
    if "criterion.empty_weight" in weights:
        raise CheckpointError(
            "its classifier is a softmax (USE_FOCAL False); corrdet's Sparse R-CNN has sigmoids"
        )
    converted = {}
    for name, value in weights.items():
        for pattern, replacement in RENAMED:
            new, found = re.subn(f"^{pattern}$", replacement, name)
            if found:
                converted[new] = value
                break
        else:
            raise CheckpointError(f"{name!r} is no parameter of the original Sparse R-CNN")
    for name in ("proposal_boxes", "proposal_features"):
        if name not in converted:
            raise CheckpointError(f"it has no init_{name}.weight: it is of another detector")
    return converted
