"""A picture of the gradient of each loss, drawn by the loss and autograd."""

import io

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from corrdet.losses import Criterion, MatchedPredictions  # noqa: E402

from .examples import composition  # noqa: E402

IOUS = (0.3, 0.6, 0.9)
COLORS = ("C3", "C1", "C2")


def gradient_picture(kind: str, name: str) -> bytes:
    """A PNG: how the loss moves scores and boxes, by the score and the IoU of a positive."""
    draw = _of_boxes if kind == "localization" else _of_scores
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    draw(axes, *composition(kind, name), kind == "couplings")
    axes.axhline(0, color="0.6", lw=0.8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    return stream.getvalue()


def _of_scores(axes, classification, localization, couplings, activation, difference) -> None:
    """Positives of three IoUs and negatives, all scores in one batch."""
    logits, ious = _batch()
    gradients = _gradients(classification, localization, couplings, activation, logits, ious)
    if difference:
        without = _gradients(classification, localization, [], activation, logits, ious)
        gradients = [a - b for a, b in zip(gradients, without, strict=True)]
    scores = logits.sigmoid()
    for iou, color in zip(IOUS, COLORS, strict=True):
        own = ious == iou
        label = f"positives of IoU {iou}"
        axes.plot(scores[own], gradients[0][own], ".-", color=color, ms=4, label=label)
    if not difference:
        axes.plot(scores[:: len(IOUS)], gradients[1], color="0.3", label="negatives")
    what = "what it adds to the gradient at the logit" if difference else "gradient at the logit"
    axes.set(xlabel="score", ylabel=what)
    axes.legend()


def _batch():
    """(P,) logits of positives, evenly spread over the scores, and their IoUs in turn."""
    scores = torch.linspace(0.02, 0.98, 49).repeat_interleave(len(IOUS))
    return scores.logit(), torch.tensor(IOUS).repeat(49)


def _boxes(ious):
    """Boxes of 10 pixels' height, shifted by as much as their IoU says, and their ground truth."""
    gt_boxes = torch.tensor([0.0, 0.0, 10.0, 10.0]).repeat(len(ious), 1)
    shift = 10 * (1 - ious) / (1 + ious)
    return gt_boxes + shift[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0]), gt_boxes


def _matched(logits, ious, activation):
    boxes, gt_boxes = _boxes(ious)
    deltas = (boxes - gt_boxes) / 10
    logits, boxes, deltas = (x.detach().clone().requires_grad_() for x in (logits, boxes, deltas))
    count = len(ious)
    labels = torch.cat([torch.zeros(count), torch.ones(len(logits) - count)]).long()
    return MatchedPredictions(
        logits, labels, torch.arange(count), boxes, gt_boxes, torch.zeros(count).long(),
        deltas, torch.zeros_like(deltas), activation=activation, num_images=1,
    )  # fmt: skip


def _gradients(classification, localization, couplings, activation, logits, ious):
    """At the logits of the positives and of as many negatives as there are scores, of one class."""
    columns = torch.cat([logits, logits[:: len(IOUS)]])[:, None]
    if activation == "softmax":
        columns = torch.cat([columns, torch.zeros_like(columns)], dim=1)
    matched = _matched(columns, ious, activation)
    criterion = Criterion(classification, localization, couplings)
    loss = sum(criterion(matched).values())
    (gradient,) = torch.autograd.grad(loss, matched.logits)
    return gradient[: len(ious), 0], gradient[len(ious) :, 0]


def _of_boxes(axes, classification, localization, couplings, activation, _) -> None:
    """A box that is shifted to one side, further and further."""
    ious = torch.linspace(0.02, 0.995, 80)
    matched = _matched(torch.zeros(len(ious), 1), ious, activation)
    loss = Criterion(classification, localization)(matched, 1.0)["loss_box_reg"]
    found = torch.autograd.grad(loss, (matched.boxes, matched.deltas), allow_unused=True)
    for gradient, scale, label in zip(found, (10, 1), ("boxes", "deltas"), strict=True):
        if gradient is not None:
            norms = (gradient * scale).norm(dim=1)
            axes.plot(ious, norms, label=f"norm of the gradient at the {label}, in box sizes")
    axes.set(xlabel="IoU of a box that is shifted to one side", ylabel="norm")
    axes.legend()
