"""Detectron2's LazyConfigs: models of its zoo train with a Criterion, or as before."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from corrdet.integrations.detectron2 import use_criterion
from corrdet.losses import Criterion

SIDE = 96
SOFTMAX = {
    "classification": "softmax_cross_entropy",
    "localization": "giou",
    "couplings": {"harmonic": 1.0, "correlation": 0.3},
}
SIGMOID = {"classification": "rank_sort", "localization": "giou", "couplings": ["association"]}


def config(name):
    """Of the zoo, with a small body."""
    model = model_zoo.get_config(f"common/models/{name}.py").model
    bottom_up = model.backbone.bottom_up
    bottom_up.stages.update({"depth": 18, "norm": "BN"})
    bottom_up.stages.pop("stride_in_1x1")
    bottom_up.stem.norm = "BN"
    if name == "retinanet":
        model.num_classes = 3
        model.backbone.top_block.in_channels = 512
        model.head.conv_dims = [256]
        return model
    model.proposal_generator.update({"pre_nms_topk": (100, 100), "post_nms_topk": (50, 50)})
    heads = model.roi_heads
    heads.update({"num_classes": 3, "batch_size_per_image": 32})
    single = name != "cascade_rcnn"
    for head, predictor in zip(
        [heads.box_head] if single else heads.box_heads,
        [heads.box_predictor] if single else heads.box_predictors,
        strict=True,
    ):
        head.fc_dims = [32]
        predictor.input_shape = ShapeSpec(channels=32)
    heads.mask_head.conv_dims = [16, 16]
    return model


def batch():
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for box, label in [([10.0, 10, 50, 60], 0), ([30.0, 20, 90, 80], 2)]:
        masks = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        masks[:, int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        instances = Instances((SIDE, SIDE), gt_boxes=Boxes(torch.tensor([box])))
        instances.gt_classes, instances.gt_masks = torch.tensor([label]), BitMasks(masks)
        image = torch.rand(3, SIDE, SIDE, generator=generator) * 255
        inputs.append({"image": image, "instances": instances})
    return inputs


def built(name, criterion=None):
    model = config(name)
    if criterion is not None:
        use_criterion(model, LazyCall(Criterion)(**criterion))
    torch.manual_seed(0)
    return instantiate(model)


def losses_of(model):
    torch.manual_seed(3)  # proposals are sampled
    with EventStorage():
        return model(batch())


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn_fpn", "cascade_rcnn"])
def test_detectron2s_own_losses(name):
    classification = "sigmoid_focal" if name == "retinanet" else "softmax_cross_entropy"
    criterion = {"classification": classification, "localization": "smooth_l1"}
    theirs, model = built(name), built(name, criterion)
    assert list(model.state_dict()) == list(theirs.state_dict())
    expected, losses = losses_of(theirs), losses_of(model)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn_fpn", "cascade_rcnn"])
def test_trains(name):
    model = built(name, SIGMOID if name == "retinanet" else SOFTMAX)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0003)
    history = []
    for _ in range(5):
        losses = losses_of(model)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.95 * history[0]
    assert model.backbone.bottom_up.stem.conv1.weight.grad.any()
    added = [key for key in losses if "association" in key or "correlation" in key]
    assert len(added) == (3 if name == "cascade_rcnn" else 1)


def test_each_stage_has_its_own_criterion():
    predictors = built("cascade_rcnn", SOFTMAX).roi_heads.box_predictor
    assert len({id(predictor.criterion) for predictor in predictors}) == 3


def test_a_config_without_either():
    model = config("mask_rcnn_fpn")
    del model.roi_heads
    with pytest.raises(ValueError, match="expected a config with RetinaNet or FastRCNNOutput"):
        use_criterion(model, LazyCall(Criterion)(**SOFTMAX))
