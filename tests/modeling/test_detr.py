"""DETR: the network of published names in plain code, detections, positives, conversion."""

import importlib.util
import math
import sys
from argparse import Namespace

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

from corrdet.engine.configuration import load_config
from corrdet.matching import hungarian_matching
from corrdet.modeling.query.detr import CorrdetDETR, DETRTransformer, position_encoding
from corrdet.ops import elementwise_iou
from tests.helpers.detectors import batch
from tests.helpers.training import ROOT

CHANNELS, HEADS, HIDDEN, LAYERS, QUERIES = 32, 4, 48, 2, 7
COCO_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def detr_cfg(*overrides):
    smaller = [
        "MODEL.DEVICE", "cpu",
        "MODEL.DETR.NUM_QUERIES", QUERIES,
        "MODEL.DETR.HIDDEN_DIM", CHANNELS,
        "MODEL.DETR.NUM_HEADS", HEADS,
        "MODEL.DETR.FEEDFORWARD_DIM", HIDDEN,
        "MODEL.DETR.NUM_ENCODER_LAYERS", LAYERS,
        "MODEL.DETR.NUM_DECODER_LAYERS", LAYERS,
    ]  # fmt: skip
    path = str(ROOT / "configs/detr/detr_R50.yaml")
    return load_config(Namespace(config_file=path, opts=[*smaller, *overrides]))


@pytest.fixture(scope="module")
def model():
    return build_model(detr_cfg()).eval()


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_detr.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def original():
    """torchvision's ResNet-50, and weights with the names that the published checkpoint has."""
    torch.manual_seed(0)
    backbone = resnet50(norm_layer=FrozenBatchNorm2d).eval()
    for name, value in backbone.state_dict().items():
        if ".bn" in name or name.startswith("bn1") or "downsample.1" in name:
            value.uniform_(0.5, 1.0)
    weights = {
        f"backbone.0.body.{name}": value
        for name, value in backbone.state_dict().items()
        if not name.startswith("fc.")
    }
    attention = {
        "in_proj_weight": (3 * CHANNELS, CHANNELS),
        "in_proj_bias": (3 * CHANNELS,),
        "out_proj.weight": (CHANNELS, CHANNELS),
        "out_proj.bias": (CHANNELS,),
    }
    shapes = {
        "transformer.decoder.norm.weight": (CHANNELS,),
        "transformer.decoder.norm.bias": (CHANNELS,),
        "query_embed.weight": (QUERIES, CHANNELS),
        "input_proj.weight": (CHANNELS, 2048, 1, 1),
        "input_proj.bias": (CHANNELS,),
        "class_embed.weight": (92, CHANNELS),
        "class_embed.bias": (92,),
    }
    for layer, size in enumerate((CHANNELS, CHANNELS, 4)):
        shapes[f"bbox_embed.layers.{layer}.weight"] = (size, CHANNELS)
        shapes[f"bbox_embed.layers.{layer}.bias"] = (size,)
    for part, attentions, norms in (
        ("encoder", ["self_attn"], 2),
        ("decoder", ["self_attn", "multihead_attn"], 3),
    ):
        for layer in range(LAYERS):
            own = {f"{name}.{key}": shape for name in attentions for key, shape in
                   attention.items()}  # fmt: skip
            own |= {"linear1.weight": (HIDDEN, CHANNELS), "linear1.bias": (HIDDEN,)}
            own |= {"linear2.weight": (CHANNELS, HIDDEN), "linear2.bias": (CHANNELS,)}
            for norm in range(1, norms + 1):
                own |= {f"norm{norm}.weight": (CHANNELS,), f"norm{norm}.bias": (CHANNELS,)}
            for name, shape in own.items():
                shapes[f"transformer.{part}.layers.{layer}.{name}"] = shape
    generator = torch.Generator().manual_seed(1)
    for name, shape in shapes.items():
        weights[name] = torch.randn(shape, generator=generator) * 0.3
    weights["input_proj.weight"] /= 20
    return backbone, weights


# ---- The network, from the paper, of one image at a time.


def plain_positions(height, width):
    """(H x W, D) of an image without padding."""
    positions = torch.zeros(height, width, CHANNELS)
    half = CHANNELS // 2
    for y in range(height):
        for x in range(width):
            for offset, place, count in ((0, y, height), (half, x, width)):
                angle = (place + 1) / (count + 1e-6) * 2 * math.pi
                for i in range(half):
                    argument = angle / 10000 ** (2 * (i // 2) / half)
                    wave = math.cos(argument) if i % 2 else math.sin(argument)
                    positions[y, x, offset + i] = wave
    return positions.flatten(0, 1)


def plain_network(backbone, weights, image):
    """(Q, 92) logits and (Q, 4) boxes, centre and sides in units of the image."""
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(image[None]))))
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
    x = F.conv2d(x, weights["input_proj.weight"], weights["input_proj.bias"])[0]
    positions = plain_positions(*x.shape[1:])
    features = x.flatten(1).t()

    def linear(x, name):
        return x @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, (CHANNELS,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attend(query, key, value, name):
        projections = zip(
            (query, key, value),
            weights[f"{name}.in_proj_weight"].chunk(3),
            weights[f"{name}.in_proj_bias"].chunk(3),
            strict=True,
        )
        query, key, value = (
            (x @ weight.t() + bias).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for x, weight, bias in projections
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(CHANNELS / HEADS)
        attended = (scores.softmax(dim=2) @ value).transpose(0, 1).flatten(1)
        return linear(attended, f"{name}.out_proj")

    def feedforward(x, name):
        return linear(linear(x, f"{name}.linear1").relu(), f"{name}.linear2")

    for layer in range(LAYERS):
        name = f"transformer.encoder.layers.{layer}"
        query = features + positions
        features = norm(
            features + attend(query, query, features, f"{name}.self_attn"), f"{name}.norm1"
        )
        features = norm(features + feedforward(features, name), f"{name}.norm2")
    queries = weights["query_embed.weight"]
    objects = torch.zeros(QUERIES, CHANNELS)
    for layer in range(LAYERS):
        name = f"transformer.decoder.layers.{layer}"
        query = objects + queries
        objects = norm(
            objects + attend(query, query, objects, f"{name}.self_attn"), f"{name}.norm1"
        )
        attended = attend(
            objects + queries, features + positions, features, f"{name}.multihead_attn"
        )
        objects = norm(objects + attended, f"{name}.norm2")
        objects = norm(objects + feedforward(objects, name), f"{name}.norm3")
    objects = norm(objects, "transformer.decoder.norm")
    box = linear(objects, "bbox_embed.layers.0").relu()
    box = linear(linear(box, "bbox_embed.layers.1").relu(), "bbox_embed.layers.2")
    return linear(objects, "class_embed"), box.sigmoid()


@pytest.mark.slow
def test_converted_weights_load_and_predict_the_same(tool, original, tmp_path, monkeypatch):
    backbone, weights = original
    torch.save({"model": weights}, tmp_path / "in.pth")
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
    tool.main()
    converted = torch.load(tmp_path / "out.pth", weights_only=True)
    assert converted.keys() == {"model"}
    model = build_model(detr_cfg()).eval()
    model.load_state_dict(converted["model"], strict=True)
    assert model.class_embed.weight.shape == (81, CHANNELS)

    images = [{"image": torch.rand(3, height, width) * 255} for height, width in
              ((128, 96), (64, 160))]  # fmt: skip
    with torch.no_grad():
        alone = [predictions_of(model, [image]) for image in images]
        for index, image in enumerate(images):
            mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
            std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
            normalized = (image["image"] - mean) / std
            logits, boxes = plain_network(backbone, weights, normalized)
            logits = logits[:, [*COCO_IDS, 91]]
            x, y, w, h = boxes.unbind(1)
            height, width = image["image"].shape[1:]
            boxes = torch.stack(
                [
                    (x - w / 2) * width,
                    (y - h / 2) * height,
                    (x + w / 2) * width,
                    (y + h / 2) * height,
                ],
                dim=1,
            )
            torch.testing.assert_close(alone[index][0][0], logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(alone[index][1][0], boxes, rtol=1e-3, atol=1e-2)


def predictions_of(model, images):
    normalized = [(image["image"] - model.pixel_mean) / model.pixel_std for image in images]
    return model.predict(ImageList.from_tensors(normalized))


class Pool(torch.nn.Module):
    """A backbone that sees no pixel of a neighbouring cell."""

    size_divisibility = 0

    def output_shape(self):
        return {"pooled": ShapeSpec(channels=3, stride=32)}

    def forward(self, images):
        return {"pooled": F.avg_pool2d(images, 32)}


def test_other_images_of_the_batch_change_nothing():
    """They differ in size, so there is padding."""
    torch.manual_seed(0)
    model = CorrdetDETR(
        backbone=Pool(),
        in_feature="pooled",
        transformer=DETRTransformer(CHANNELS, HEADS, HIDDEN, LAYERS, LAYERS),
        channels=CHANNELS,
        num_classes=80,
        num_queries=QUERIES,
        matching_costs={},
        max_detections=100,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    ).eval()
    images = [{"image": torch.rand(3, 128, 96)}, {"image": torch.rand(3, 64, 160)}]
    with torch.no_grad():
        together = predictions_of(model, images)
        alone = [predictions_of(model, [image]) for image in images]
    for index in range(2):
        for found, expected in zip(together, alone[index], strict=True):
            torch.testing.assert_close(found[index], expected[0], rtol=1e-4, atol=1e-3)


def test_positions_are_those_within_the_image():
    padding = torch.ones(2, 5, 6, dtype=torch.bool)
    padding[0, :5, :4] = padding[1, :2, :6] = False
    found = position_encoding(padding, CHANNELS).view(2, 5, 6, CHANNELS)
    for image, (height, width) in enumerate(((5, 4), (2, 6))):
        expected = plain_positions(height, width).view(height, width, CHANNELS)
        torch.testing.assert_close(found[image, :height, :width], expected, atol=1e-4, rtol=1e-4)


def test_padding_is_not_looked_at(model):
    """Whatever the features beyond the image are, the objects are the same."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 12, CHANNELS, generator=generator)
    positions = torch.randn(1, 12, CHANNELS, generator=generator)
    queries = model.query_embed.weight[None]
    padding = torch.arange(12)[None] >= 9
    with torch.no_grad():
        padded = model.transformer(features, positions, padding, queries)
        cut = model.transformer(features[:, :9], positions[:, :9], padding[:, :9], queries)
    torch.testing.assert_close(padded, cut)


def test_detections_and_positives(model):
    torch.manual_seed(0)
    torch.nn.init.normal_(model.class_embed.weight)  # queries of different classes
    torch.nn.init.normal_(model.query_embed.weight, std=30.0)
    images = batch((3, 0))
    for image in images:
        image["height"], image["width"] = 200, 150
    with torch.no_grad():
        logits, boxes = predictions_of(model, images)
        outputs = model(images)
        without = model([{k: v for k, v in x.items() if k != "instances"} for x in images])
    truth = [image["instances"] for image in images]
    labels, gt_boxes = hungarian_matching(
        logits,
        boxes,
        [t.gt_boxes.tensor for t in truth],
        [t.gt_classes for t in truth],
        [t.image_size for t in truth],
        classification_weight=1.0,
        activation="softmax",
    )
    for index, output in enumerate(outputs):
        scores = logits[index].softmax(dim=1)
        expected = []
        height, width = truth[index].image_size
        for query in range(QUERIES):
            best = max(range(80), key=lambda c, q=query: scores[q, c].item())
            box = boxes[index, query] * torch.tensor([150 / width, 200 / height] * 2)
            box = box.clamp(min=0).minimum(torch.tensor([150.0, 200.0] * 2))
            expected.append((scores[query, best].item(), best, box.tolist()))
        values, classes, its_boxes = zip(*sorted(expected, reverse=True), strict=True)
        found = output["instances"]
        torch.testing.assert_close(found.scores, torch.tensor(values))
        assert found.pred_classes.tolist() == list(classes) and len(set(classes)) > 1
        torch.testing.assert_close(
            found.pred_boxes.tensor, torch.tensor(its_boxes), rtol=1e-4, atol=1e-3
        )
        own = torch.nonzero(labels[index] < 80)[:, 0]
        assert len(own) == len(truth[index])
        positives = output["positives"]
        torch.testing.assert_close(positives["scores"], scores[own, labels[index, own]])
        ious = elementwise_iou(boxes[index, own], gt_boxes[index, own])
        torch.testing.assert_close(positives["ious"], ious)
        assert "positives" not in without[index]


def test_what_cannot_be_converted_is_refused(tool, original, tmp_path, monkeypatch):
    _, weights = original
    for changes, message in (
        ({"bbox_embed.layers.3.bias": torch.ones(4)}, "'bbox_embed.layers.3.bias' is no parameter"),
        (
            {"class_embed.bias": torch.ones(21)},
            "class_embed.bias is of 21 classes, expected",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            tool.convert({**weights, **changes})
    with pytest.raises(ValueError, match="no input_proj.weight: it is of another detector"):
        tool.convert({"query_embed.weight": torch.ones(3, 2)})
    incomplete = {name: value for name, value in weights.items() if name != "query_embed.weight"}
    with pytest.raises(ValueError, match="it has no query_embed.weight: .* or incomplete"):
        tool.convert(incomplete)
    (tmp_path / "noise.pth").write_bytes(b"noise")
    arguments = ["tool", str(tmp_path / "noise.pth"), str(tmp_path / "out.pth")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="noise.pth was not converted"):
        tool.main()
    assert not (tmp_path / "out.pth").exists()


def test_what_cannot_be_built_is_refused():
    for overrides, message in (
        (("MODEL.DETR.NUM_HEADS", 5), "HIDDEN_DIM must be divisible .*got 32 and 5"),
        (("TEST.IMAGE_BOUNDS", True), "expected False for CorrdetDETR"),
        (("MODEL.DETR.NUM_DECODER_LAYERS", 0), "NUM_DECODER_LAYERS must be >= 1, got 0"),
        (
            ("MODEL.CRITERION.CLASSIFICATION", "ape"),
            "CorrdetDETR has a softmax head: set MODEL.DETR.ACTIVATION to 'sigmoid'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(detr_cfg(*overrides))
