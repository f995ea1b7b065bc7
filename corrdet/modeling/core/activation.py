"""The activations of heads: "sigmoid" of each class, or "softmax" with the background last."""

import torch.nn.functional as F
from torch import Tensor


def num_logits(activation: str, num_classes: int) -> int:
    """Of a sample: C, and one more with a softmax."""
    return num_classes + (activation == "softmax")


def class_scores(logits: Tensor, activation: str) -> Tensor:
    """Scores (..., C) in [0, 1] of the classes, from logits (..., C) or (..., C + 1)."""
    if activation == "sigmoid":
        return logits.sigmoid()
    return logits.softmax(dim=-1)[..., :-1]


def background_losses(logits: Tensor, activation: str) -> Tensor:
    """Cross entropy of samples as background: (S,), from logits (S, C) or (S, C + 1)."""
    if activation == "sigmoid":
        return F.softplus(logits).sum(dim=1)
    return -logits.log_softmax(dim=1)[:, -1]
