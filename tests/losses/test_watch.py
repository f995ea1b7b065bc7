"""A training without positives is told so, once."""

import warnings

import pytest
import torch

from corrdet.losses import Criterion
from tests.helpers.losses import matched_predictions


def batches(criterion, count, num_positives=0):
    """How many of so many batches have warned."""
    matched = matched_predictions(num_positives)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            criterion(matched)
    assert all("is a positive" in str(warning.message) for warning in caught)
    return len(caught)


def test_warns_once_after_100_batches():
    criterion = Criterion("ap", "giou")
    assert batches(criterion, 99) == 0
    assert batches(criterion, 1) == 1
    assert batches(criterion, 250) == 0


def test_counts_batches_in_a_row():
    criterion = Criterion("ap", "giou")
    for _ in range(2):
        assert batches(criterion, 99) == 0
        assert batches(criterion, 1, num_positives=3) == 0
    assert batches(criterion, 100) == 1


def test_layers_of_one_batch_count_once():
    criterion, matched = Criterion("ap", "giou"), matched_predictions(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for iteration in range(99):
            for _ in range(7):
                criterion(matched, iteration=iteration)
        assert not caught
        criterion(matched, iteration=99)
    assert len(caught) == 1


def test_evaluation_does_not_count():
    criterion = Criterion("ap", "giou").eval()
    assert batches(criterion, 150) == 0
    assert batches(criterion.train(), 99) == 0


def test_says_what_to_look_at():
    criterion = Criterion("sigmoid_focal", "giou")
    with pytest.warns(UserWarning, match="XYXY in pixels.*classes from 0.*sizes of anchors.*IoU"):
        for _ in range(100):
            criterion(matched_predictions(0))


def test_is_in_no_checkpoint():
    criterion = Criterion("ap", "giou")
    batches(criterion, 20)
    assert not criterion.state_dict()
    torch.save(criterion, "/dev/null")
