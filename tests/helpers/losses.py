"""Batches of predictions, and Criterions by config, for tests of losses."""

import torch
from detectron2.config import get_cfg

from corrdet import add_corrdet_config
from corrdet.losses import Criterion, MatchedPredictions, build_criterion

# What tests divide sums over samples by.
NORMALIZER = 4.0


def matched_predictions(num_positives=5, dtype=torch.float32, **changes) -> MatchedPredictions:
    """20 samples of 3 classes: positives first, then two ignored, then background."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((20,), 3)
    labels[:num_positives] = torch.arange(num_positives) % 3
    labels[num_positives : num_positives + 2] = -1
    gt_boxes = torch.tensor([10.0, 10, 30, 40]).repeat(num_positives, 1)
    shifts = torch.rand(num_positives, 4, generator=generator) * 8
    fields = {
        "logits": torch.randn(20, 3, generator=generator).to(dtype).requires_grad_(),
        "labels": labels,
        "positives": torch.arange(num_positives),
        "boxes": (gt_boxes + shifts).to(dtype).requires_grad_(),
        "gt_boxes": gt_boxes,
        "image_ids": torch.zeros(num_positives, dtype=torch.int64),
        "deltas": shifts.to(dtype).requires_grad_(),
        "gt_deltas": torch.full((num_positives, 4), 0.3),
    }
    return MatchedPredictions(**{**fields, **changes})


def softmax_predictions(num_positives=5) -> MatchedPredictions:
    """The same, of a softmax head."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(20, 4, generator=generator).requires_grad_()
    return matched_predictions(num_positives, logits=logits, activation="softmax")


def config(**criterion):
    """A config, with keys of MODEL.CRITERION."""
    cfg = get_cfg()
    add_corrdet_config(cfg)
    for key, value in criterion.items():
        cfg.MODEL.CRITERION[key] = value
    return cfg


def build(activation="sigmoid", has_deltas=True, **criterion) -> Criterion:
    """The Criterion of such a config."""
    return build_criterion(config(**criterion), activation=activation, has_deltas=has_deltas)
