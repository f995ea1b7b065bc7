"""Multi-scale testing against views that are made, seen and mapped back by hand."""

import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from torch import nn

from corrdet.engine.configuration import ConfigError
from corrdet.modeling import DenseDetectorWithTTA, score_voting
from tests.helpers.detectors import (
    ONE_PRIOR,
    check_detections,
    dense_cfg,
    plain_detections,
    plain_predictions,
)

NAMES = ("retinanet_baseline", *ONE_PRIOR)
THRESHOLD = 0.0101


def build(name, sizes, flip):
    """A detector with weights that see something everywhere, and its test-time augmentation."""
    views = ["TEST.AUG.MIN_SIZES", sizes, "TEST.AUG.MAX_SIZE", 160, "TEST.AUG.FLIP", flip]
    # GroupNorm has no statistics of the one cell that small views have at the highest level.
    model = ["MODEL.RETINANET.NUM_CONVS", 1, "MODEL.DENSE.NORM", "BN"]
    cfg = dense_cfg(name, *model, *views)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.inference.score_threshold = THRESHOLD
    return model, DenseDetectorWithTTA(cfg, model)


def image_of(height=90, width=120):
    """An image that was resized to this size from half of it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height // 2, "width": width // 2}


def detections_of(model, image):
    with torch.no_grad():
        (output,) = model([image])
    assert output.keys() == {"instances"}
    return output["instances"]


def candidates_of_view(model, image, size, flip):
    """Boxes in the original image, scores and classes before NMS."""
    pixels = image["image"].permute(1, 2, 0).numpy()
    pixels = ResizeShortestEdge(size, 160).get_transform(pixels).apply_image(pixels)
    pixels = pixels[:, ::-1] if flip else pixels
    view = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    height, width = view.shape[1:]
    if model.num_classes * 9 == model.head.cls_score.out_channels:
        _, levels, logits, boxes = retinanet_predictions(model, view)
    else:
        _, levels, logits, boxes, _ = plain_predictions(model, [{"image": view}])
    *_, boxes, scores, classes = plain_detections(
        logits[0].sigmoid(), boxes[0], levels, THRESHOLD, 1000, 1.0, 0, None
    )
    if flip:
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
    scale = torch.tensor([image["width"] / width, image["height"] / height])
    return boxes * scale.repeat(2), scores, classes


def retinanet_predictions(model, view):
    with torch.no_grad():
        _, features, (logits, deltas, _) = model.predict([{"image": view}])
    priors = [boxes.tensor for boxes in model.anchor_generator(features)]
    levels = torch.cat(
        [torch.full((len(level_priors),), i) for i, level_priors in enumerate(priors)]
    )
    logits, deltas = (
        torch.cat(
            [x.unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in predicted], 1
        )
        for predicted in (logits, deltas)
    )
    priors = torch.cat(priors)
    return priors, levels, logits, model.box2box_transform.apply_deltas(deltas[0], priors)[None]


@pytest.mark.parametrize("name", NAMES)
def test_against_views_by_hand(name):
    model, with_tta = build(name, sizes=(72, 90, 130), flip=True)
    image = image_of()
    views = [(72, False), (72, True), (90, False), (90, True), (130, False), (130, True)]
    seen = [candidates_of_view(model, image, *view) for view in views]
    assert all(len(scores) > 10 for _, scores, _ in seen)
    boxes, scores, classes = (torch.cat(values) for values in zip(*seen, strict=True))
    keep = batched_nms(boxes, scores, classes, model.inference.nms_threshold)[:100]
    kept = boxes[keep]
    if name.startswith("paa"):
        kept = score_voting(kept, classes[keep], boxes, scores, classes)
    detections = detections_of(with_tta, image)
    assert detections.image_size == (45, 60)
    check_detections(detections, kept, scores[keep], classes[keep])


@pytest.mark.parametrize("name", NAMES)
def test_one_view_is_the_detector_itself(name):
    model, with_tta = build(name, sizes=(90,), flip=False)
    image = image_of()
    detections, expected = detections_of(with_tta, image), detections_of(model, image)
    fields = expected.pred_boxes.tensor, expected.scores, expected.pred_classes
    check_detections(detections, *fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_mirrored_image_has_mirrored_detections(name):
    _, with_tta = build(name, sizes=(72, 100), flip=True)
    image = image_of()
    expected = detections_of(with_tta, image)
    mirrored = detections_of(with_tta, {**image, "image": image["image"].flip(2)})
    left, top, right, bottom = expected.pred_boxes.tensor.unbind(1)
    boxes = torch.stack([60 - right, top, 60 - left, bottom], dim=1)
    torch.testing.assert_close(mirrored.scores, expected.scores)
    assert torch.equal(mirrored.pred_classes, expected.pred_classes)
    torch.testing.assert_close(mirrored.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-3)


def test_ground_truth_and_nothing_to_see():
    model, with_tta = build("atss_baseline", sizes=(72, 90), flip=True)
    image, mapper, viewed = image_of(), with_tta.tta_mapper, []
    with_tta.tta_mapper = lambda inputs: viewed.append(inputs) or mapper(inputs)
    before = image["image"].clone()
    # The loader has it for beta_img; each view would copy it and leave it where it is.
    assert len(detections_of(with_tta, {**image, "instances": "the ground truth"})) > 10
    assert viewed[0].keys() == {"image", "height", "width"}
    assert torch.equal(image["image"], before)
    model.inference.score_threshold = 1.0
    assert len(detections_of(with_tta, image)) == 0


def test_other_models_are_refused():
    cfg = dense_cfg("atss_baseline")
    with pytest.raises(TypeError, match="expected a dense detector of .* got Linear"):
        DenseDetectorWithTTA(cfg, nn.Linear(1, 1))
    enabled = "TEST.AUG.ENABLED", True
    for meta_architecture in ("RetinaNet", "SemanticSegmentor"):
        with pytest.raises(ConfigError, match="TEST.AUG.ENABLED is for .* is 'RetinaNet'|Semantic"):
            dense_cfg("retinanet_baseline", "MODEL.META_ARCHITECTURE", meta_architecture, *enabled)
    with pytest.raises(ConfigError, match="is 'CorrdetYOLACT'"):
        dense_cfg("yolact_baseline", *enabled)
    with pytest.raises(TypeError, match="without masks, got CorrdetYOLACT"):
        DenseDetectorWithTTA(cfg, build_model(dense_cfg("yolact_baseline")))
    with pytest.raises(ConfigError, match="is 'CorrdetSparseRCNN'"):
        dense_cfg("sparse_rcnn_baseline", *enabled)
    for sizes in ((), (160, -160)):
        with pytest.raises(ConfigError, match="TEST.AUG.MIN_SIZES must be at least one"):
            dense_cfg("atss_baseline", *enabled, "TEST.AUG.MIN_SIZES", sizes)
    dense_cfg("faster_rcnn_baseline", *enabled)
