"""A batch to try losses on: as real ones are."""

import pytest
import torch

from corrdet.losses import Criterion, example_predictions


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_any_loss_can_be_tried_on_it(activation):
    matched = example_predictions(activation=activation)
    classification = "ape" if activation == "sigmoid" else "softmax_cross_entropy"
    options = {"correlation": {"over": "level"}}
    losses = Criterion(classification, "smooth_l1_harmonic_iou", ["correlation"], options)(matched)
    sum(losses.values()).backward()
    assert all(x.grad.any() for x in (matched.logits, matched.boxes, matched.deltas))
    assert 0.3 < matched.ious.mean() < 0.9 and len(matched.image_ids.unique()) == 2
    assert matched.logits.shape == (100, 3 + (activation == "softmax"))
    assert torch.equal((matched.labels < 3).nonzero()[:, 0], matched.positives)


def test_numbers():
    matched = example_predictions(20, 5, 0)
    assert matched.logits.shape == (20, 5) and len(matched.positives) == 0
    assert not torch.equal(example_predictions(seed=1).logits, example_predictions().logits)
    with pytest.raises(ValueError, match="as many positives, got 20 and 21"):
        example_predictions(20, 3, 21)
    with pytest.raises(ValueError, match="an even number of samples .* got 7 and 2"):
        example_predictions(7, 3, 2)
