"""Ranking losses of each image: the mean of what the function gives for the images one by one."""

import pytest
import torch

from corrdet.losses import Criterion, ape_loss, pairwise_error_loss
from tests.helpers.losses import build, matched_predictions


def of_four_images():
    """Of 5 samples each: 2 positives, 1, none, and 2 of which one is ignored."""
    labels = torch.full((20,), 3)
    positives = torch.tensor([0, 4, 7, 16])
    labels[positives] = torch.tensor([0, 2, 1, 1])
    labels[[2, 19]] = -1
    return matched_predictions(
        4,
        labels=labels,
        positives=positives,
        image_ids=torch.tensor([0, 0, 1, 3]),
        num_images=4,
        deltas=None,
        gt_deltas=None,
    )


@pytest.mark.parametrize("name", ["pairwise_error", "ape"])
def test_mean_over_images_with_positives(name):
    matched = of_four_images()
    ious = matched.ious.detach()
    parts = []
    for image, own in ((0, [0, 1]), (1, [2]), (3, [3])):
        rows = slice(5 * image, 5 * image + 5)
        logits, labels = matched.logits[rows].flatten(), matched.binary_labels[rows].flatten()
        if name == "ape":
            parts.append(ape_loss(logits, labels, ious[own]))
        else:
            parts.append(pairwise_error_loss(logits, labels))
    expected = torch.stack(parts).mean()
    loss = Criterion(name, "giou", options={name: {"over": "image"}})(matched)["loss_cls"]
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(x, matched.logits)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    assert (ours[10:15] == 0).all() and ours[0].any()
    of_batch = Criterion(name, "giou")(matched)["loss_cls"]
    assert not torch.isclose(loss, of_batch)


@pytest.mark.parametrize("name", ["pairwise_error", "ape"])
def test_without_positives(name):
    matched = matched_predictions(0, num_images=2)
    loss = Criterion(name, "giou", options={name: {"over": "image"}})(matched)["loss_cls"]
    loss.backward()
    assert loss == 0 and (matched.logits.grad == 0).all()
    with torch.no_grad():
        matched.logits[15, 1] = torch.nan
    assert Criterion(name, "giou", options={name: {"over": "image"}})(matched)["loss_cls"].isnan()


def test_refusals():
    criterion = Criterion("ape", "giou", options={"ape": {"over": "image"}})
    for num_images in (None, 3):
        with pytest.raises(ValueError, match=f"20 samples and num_images {num_images}$"):
            criterion(matched_predictions(num_images=num_images))
    for option in ({"global_batch": True}, {"memory": 2}):
        with pytest.raises(ValueError, match="over 'image' has nothing to do with other processes"):
            Criterion("ape", "giou", options={"ape": {"over": "image", **option}})
    cfg = {"CLASSIFICATION": "pairwise_error", "LOCALIZATION": "giou"}
    assert build(**cfg).classification.options["over"] == "batch"
