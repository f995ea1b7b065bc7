"""Exported and traced detectors against the detectors themselves."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from corrdet.modeling import ExportableDetector, export_detector, trace_detector
from tests.helpers.detectors import ONE_PRIOR, build_ssd, dense_cfg, possible_quality

pytestmark = pytest.mark.slow

NAMES = ("retinanet_baseline", *ONE_PRIOR)
SIZES = ((150, 222), (224, 160), (330, 200))


def build(name, *overrides):
    """A detector whose weights see something everywhere, with few candidates and detections."""
    torch.manual_seed(0)
    model = build_model(
        dense_cfg(
            name,
            "MODEL.RETINANET.NUM_CONVS",
            1,
            "MODEL.RETINANET.NORM",
            "",
            "TEST.DETECTIONS_PER_IMAGE",
            50,
            *overrides,
        )  # fmt: skip
    ).eval()
    model.inference.score_threshold, model.inference.topk = 0.0101, 100
    return model


def image_of(size):
    generator = torch.Generator().manual_seed(size[0])
    return torch.randint(0, 256, (3, *size), generator=generator).float()


def check(function, model, size):
    image = image_of(size)
    with torch.no_grad():
        (expected,) = model([{"image": image}])
    expected = expected["instances"]
    boxes, scores, classes = function(image)
    assert len(expected) > 10
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    assert torch.equal(classes, expected.pred_classes)
    assert not boxes.requires_grad and not scores.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_the_function_and_its_trace(name):
    has_quality = name in ("atss_baseline", "fcos_baseline")
    for quality in ("", possible_quality(name)) if has_quality else ("",):
        model = build(name, "MODEL.DENSE.QUALITY", quality)
        model.inference.score_threshold = 0.05 if quality else 0.0101
        traced = trace_detector(model, (192, 256))
        for size in SIZES:
            check(ExportableDetector(model), model, size)
            check(traced, model, size)
        assert "corrdet::" not in str(traced.inlined_graph)


def test_programs_take_images_of_any_size():
    model = build("paa_baseline")
    program = export_detector(model)
    assert not [node for node in program.graph.nodes if "corrdet" in str(node.target)]
    detect = program.module()
    for size in SIZES:
        check(detect, model, size)
    # The highest level, of stride 128, has one row only.
    with pytest.raises(AssertionError):
        detect(image_of((128, 160)))


def test_programs_of_one_size():
    model = build("atss_baseline", "MODEL.DENSE.NORM", "BN")
    detect = export_detector(model, (64, 96)).module()
    check(detect, model, (64, 96))
    with pytest.raises(AssertionError):
        detect(image_of((96, 96)))


@pytest.mark.parametrize("name", ["ssd_baseline", "dssd_baseline", "refinedet_baseline"])
def test_ssd_and_its_kin(name):
    model = build_ssd(name, "TEST.DETECTIONS_PER_IMAGE", 50).eval()
    model.inference.topk = 100
    traced = trace_detector(model, (192, 256))
    for size in SIZES:
        check(traced, model, size)
    if name == "ssd_baseline":
        return
    with pytest.raises(ValueError, match="for one size of images only: expected an image size"):
        export_detector(model)
    check(export_detector(model, (150, 100)).module(), model, (150, 100))


def test_nothing_to_see_and_one_class_over_another():
    model = build("atss_baseline")
    image = image_of(SIZES[0])
    model.inference.nms_threshold = 0.0  # whatever touches is one object, but for other classes
    check(ExportableDetector(model), model, SIZES[0])
    model.inference.score_threshold = 1.0
    boxes, scores, classes = ExportableDetector(model)(image)
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)


def test_the_model_stays_as_it_is():
    model = build("atss_baseline").train()
    ExportableDetector(model)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="expected a dense detector of .*, got Linear"):
        ExportableDetector(nn.Linear(1, 1))
