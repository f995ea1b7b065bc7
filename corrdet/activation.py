"""What the activation of a classifier means: one rule for all detectors, losses and matchings.

Of C classes, a "sigmoid" head has C logits of a sample, each of one class against all others; a
"softmax" head has C + 1, the background last. A sigmoid head starts with a score that is a prior
probability (Lin et al. 2017, Sec. 4.1): nearly all of its samples are negatives.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdet.options import PROBABILITY, Key, one_of

ACTIVATIONS = ("sigmoid", "softmax")
# Tables, so that a step is read in few files.
BACKGROUND_LOGITS = {"sigmoid": 0, "softmax": 1}
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=-1),
}


def activation_keys(default: str) -> dict[str, Key]:
    """The keys of a detector whose activation can be chosen; ``default``: the published one."""
    return {
        "ACTIVATION": Key(
            default,
            one_of(ACTIVATIONS),
            "'softmax' over the classes and the background, or 'sigmoid' of each class, which most "
            "losses need; weights of classifiers of the two are of different shapes",
        ),
        "PRIOR_PROB": Key(
            0.01,
            PROBABILITY,
            "with a sigmoid, what all scores are before training; 0.5 for rank_sort, as its "
            "authors have it",
        ),
    }


def num_logits(activation: str, num_classes: int) -> int:
    """Of a sample: C, and one more with a softmax."""
    return num_classes + BACKGROUND_LOGITS[activation]


def num_classes(logits: Tensor, activation: str) -> int:
    """C, of logits (..., C) or (..., C + 1)."""
    return logits.shape[-1] - BACKGROUND_LOGITS[activation]


def class_scores(logits: Tensor, activation: str) -> Tensor:
    """Scores (..., C) in [0, 1] of the classes, from logits (..., C) or (..., C + 1)."""
    return PROBABILITIES[activation](logits)[..., : num_classes(logits, activation)]


def background_losses(logits: Tensor, activation: str) -> Tensor:
    """Cross entropy of samples as background: (S,), from logits (S, C) or (S, C + 1)."""
    if activation == "sigmoid":
        return F.softplus(logits).sum(dim=1)
    return -logits.log_softmax(dim=1)[:, -1]


@torch.no_grad()
def initialize_bias(classifier: nn.Linear | nn.Conv2d, activation: str, prior_prob: float) -> None:
    """The bias before training: that of the prior probability with a sigmoid, else 0."""
    is_sigmoid = activation == "sigmoid"
    nn.init.constant_(classifier.bias, -math.log((1 - prior_prob) / prior_prob) * is_sigmoid)
