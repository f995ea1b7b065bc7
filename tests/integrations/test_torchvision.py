"""torchvision's detectors train with the losses of a Criterion, and with their own as before."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from corrdet.integrations.torchvision import use_criterion
from corrdet.losses import Criterion

# Of torchvision's models the smallest bodies; heads, anchors and everything else are its own.
SIDE = 64


class Pyramid(nn.Module):
    """Two levels, of strides 8 and 16."""

    def __init__(self, channels=32):
        super().__init__()
        self.out_channels = channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 4, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1)
        )
        self.next = nn.Conv2d(channels, channels, 3, 2, 1)
        self.fpn = FeaturePyramidNetwork([channels, channels], channels)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fpn({"0": x, "1": self.next(x)})


SIZES = {"min_size": SIDE, "max_size": SIDE}


def anchors():
    return AnchorGenerator(((16, 24), (32, 48)), ((0.5, 1.0, 2.0),) * 2)


def retinanet():
    return RetinaNet(Pyramid(), 3, anchor_generator=anchors(), **SIZES)


def fcos():
    points = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Pyramid(), 3, anchor_generator=points, **SIZES)


def ssd():
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9], steps=[8, 16])
    backbone = Pyramid()
    backbone.out_channels = [32, 32]
    return SSD(backbone, boxes, (SIDE, SIDE), 3)


R_CNN = {"box_batch_size_per_image": 32, "rpn_pre_nms_top_n_train": 100, **SIZES}


def faster_rcnn():
    return FasterRCNN(Pyramid(), 3, rpn_anchor_generator=anchors(), **R_CNN)


def mask_rcnn():
    return MaskRCNN(Pyramid(), 3, rpn_anchor_generator=anchors(), **R_CNN)


L1 = {"smooth_l1": {"beta": 1.0}}
R_CNN_L1 = {"smooth_l1": {"beta": 1 / 9}}
# The model, and the Criterion of torchvision's own losses.
MODELS = {
    "retinanet": (retinanet, lambda: Criterion("sigmoid_focal", "smooth_l1")),
    "fcos": (fcos, lambda: Criterion("sigmoid_focal", "giou")),
    "ssd": (ssd, lambda: Criterion("softmax_cross_entropy", "smooth_l1", options=L1)),
    "faster_rcnn": (
        faster_rcnn,
        lambda: Criterion("softmax_cross_entropy", "smooth_l1", options=R_CNN_L1),
    ),
    "mask_rcnn": (
        mask_rcnn,
        lambda: Criterion("softmax_cross_entropy", "smooth_l1", options=R_CNN_L1),
    ),
}
SOFTMAX = Criterion("softmax_cross_entropy", "giou", {"harmonic": 1.0, "correlation": 0.3})
NAMES = {"classification": "loss_classifier", "bbox_regression": "loss_box_reg"}


def batch(without_objects=False):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(2)]
    boxes = [[[8.0, 8, 30, 32], [30, 20, 60, 62]], [[4.0, 30, 40, 60]]]
    labels = [[1, 2], [1]]
    if without_objects:
        boxes[1], labels[1] = [], []
    targets = []
    for own, classes in zip(boxes, labels, strict=True):
        masks = torch.zeros(len(own), SIDE, SIDE, dtype=torch.uint8)
        for mask, box in zip(masks, own, strict=True):
            left, top, right, bottom = map(int, box)
            mask[top:bottom, left:right] = 1
            mask[top : top + 3, left : left + 3] = 0
        targets.append(
            {
                "boxes": torch.tensor(own).view(-1, 4),
                "labels": torch.tensor(classes, dtype=torch.int64),
                "masks": masks,
            }
        )
    return images, targets


def built(name, criterion=None):
    torch.manual_seed(0)
    model = MODELS[name][0]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # As after some training: nothing is near 0.
            nn.init.normal_(parameter, std=0.05)
    return model if criterion is None else use_criterion(model, criterion)


def losses_of(model, data):
    torch.manual_seed(7)  # R-CNN samples its proposals
    return model(*data)


def gradients(losses, model):
    total = sum(losses.values())
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("name", MODELS)
def test_torchvisions_own_losses(name):
    """Values and gradients; RetinaNet takes the mean over images, and so one image."""
    data = batch()
    if name == "retinanet":
        data = data[0][:1], data[1][:1]
    theirs = built(name)
    expected = losses_of(theirs, data)
    model = built(name, MODELS[name][1]())
    assert list(model.state_dict()) == list(theirs.state_dict())
    losses = losses_of(model, data)
    torch.testing.assert_close(losses, expected)
    for ours, own in zip(gradients(losses, model), gradients(expected, theirs), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", [*list(MODELS)[:-1], pytest.param("mask_rcnn", marks=pytest.mark.slow)]
)
def test_trains(name):
    """Losses of corrdet's fall, and their gradients reach the backbone."""
    is_softmax = name in ("ssd", "faster_rcnn", "mask_rcnn")
    criterion = copy.deepcopy(SOFTMAX) if is_softmax else Criterion("mal", "giou", ["correlation"])
    model = built(name, criterion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    history = []
    for _ in range(6 if name == "mask_rcnn" else 10):
        losses = losses_of(model, batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.95 * history[0]
    losses = losses_of(model, batch())
    for own in ("classification", "bbox_regression", "loss_correlation"):
        loss = losses[NAMES.get(own, own) if "rcnn" in name else own]
        first = model.backbone.stem[0].weight
        assert torch.autograd.grad(loss, first, retain_graph=True)[0].any(), own


@pytest.mark.parametrize("name", MODELS)
def test_an_image_without_objects(name):
    losses = losses_of(built(name, MODELS[name][1]()), batch(without_objects=True))
    assert all(loss.isfinite() for loss in losses.values())
    images, targets = batch(without_objects=True)
    losses = losses_of(built(name, MODELS[name][1]()), (images[1:], targets[1:]))
    assert sum(losses.values()).isfinite()


@pytest.mark.parametrize("name", ["retinanet", "ssd", "faster_rcnn"])
def test_copies_and_pickles_are_their_own(name):
    """As of an average of weights, and of a model that is saved as a whole."""
    model = built(name, MODELS[name][1]())
    expected = losses_of(model, batch())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(losses_of(other, batch()), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        torch.testing.assert_close(losses_of(model, batch()), expected)


def test_detections_are_unchanged():
    theirs, model = built("faster_rcnn").eval(), built("faster_rcnn", SOFTMAX).eval()
    images, _ = batch()
    torch.testing.assert_close(model(images), theirs(images))


def test_counts_steps():
    """A weight with a warm-up."""
    from corrdet.losses import Weight

    criterion = Criterion("sigmoid_focal", "giou", {"association": Weight(1.0, warmup_iters=2)})
    model = built("fcos", criterion)
    values = [losses_of(model, batch())["loss_association"].item() for _ in range(3)]
    assert values[0] == 0 and values[1] * 2 == pytest.approx(values[2])
    assert model.head.iteration == 3
    model.head.iteration = 1
    assert losses_of(model, batch())["loss_association"].item() == pytest.approx(values[1])


def test_another_criterion_and_other_models():
    model = built("fcos", Criterion("sigmoid_focal", "giou"))
    use_criterion(model, Criterion("ap", "giou"))
    assert model.head.criterion.classification.name == "ap"
    with pytest.raises(TypeError, match="RetinaNetHead, FCOSHead, SSD, RoIHeads, got Pyramid with"):
        use_criterion(Pyramid(), SOFTMAX)
    with pytest.raises(ValueError, match="'sigmoid_focal' works on sigmoid heads"):
        losses_of(built("ssd", Criterion("sigmoid_focal", "giou")), batch())
