"""Fine-tuning: rows of class layers that are kept by name, and parts of another model."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from corrdet import add_corrdet_config
from corrdet.engine import CheckpointError, SafeCheckpointer
from corrdet.engine.starting_weights import StartingWeights, layout_of, rows_of_classes

THEIRS, OURS = ("cat", "dog", "cow"), ("bird", "cow", "cat", "bee")


def build(config: str, num_classes: int):
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file(f"configs/quick/{config}.yaml", False)
    for node in cfg.MODEL.values():
        if isinstance(node, dict) and "NUM_CLASSES" in node:
            node.NUM_CLASSES = num_classes
    return build_model(cfg)


SOFTMAX = (
    "ssd_baseline",
    "refinedet_baseline",
    "mask_rcnn_baseline",
    "cascade_rcnn_baseline",
    "yolact_baseline",
)
# Rows of each class, None where levels differ; background.
LAYERS = {
    "retinanet_baseline": {"head.cls_score": (9, 0)},
    "atss_baseline": {"head.cls_score": (1, 0)},
    "ssd_baseline": {f"head.cls_score.{i}": (None, 1) for i in range(4)},
    "refinedet_baseline": {f"head.object_detection.cls_score.{i}": (3, 1) for i in range(4)},
    "mask_rcnn_baseline": {
        "roi_heads.box_predictor.cls_score": (1, 1),
        "roi_heads.box_predictor.bbox_pred": (4, 0),
        "roi_heads.mask_head.predictor": (1, 0),
    },
    "cascade_rcnn_baseline": {f"roi_heads.box_predictor.{i}.cls_score": (1, 1) for i in range(3)},
    "sparse_rcnn_baseline": {f"stages.{i}.cls_score": (1, 0) for i in range(4)},
    "yolact_baseline": {"head.cls_score": (None, 1), "head.semantic": (1, 0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("config", LAYERS)
def test_all_layers_of_classes_are_found(config):
    ours, more = (build(config, number).state_dict() for number in (4, 7))
    changed = {name for name in ours if ours[name].shape != more[name].shape}
    is_softmax = config in SOFTMAX
    found = {name: layout_of(name, value, 4, is_softmax) for name, value in ours.items()}
    assert changed == {name for name, layout in found.items() if layout}
    expected = LAYERS[config]
    # SSD's levels have different numbers of boxes.
    assert {name.rpartition(".")[0] for name in changed} >= expected.keys()
    for name, (count, background) in expected.items():
        layout = found[f"{name}.weight"]
        assert layout[1] == background and count in (None, layout[0])


@pytest.mark.slow
@pytest.mark.parametrize("config", ["retinanet_baseline", "ssd_baseline", "sparse_rcnn_baseline"])
def test_shared_classes_have_the_logits_that_they_had(config, tmp_path):
    torch.manual_seed(0)
    theirs, ours = build(config, 3), build(config, 4)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    checkpointer = SafeCheckpointer(ours)
    checkpointer.starting = StartingWeights(theirs=THEIRS, ours=OURS, is_softmax=config in SOFTMAX)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    checkpointer.resume_or_load(str(tmp_path / "w.pth"), resume=False)
    for name, value in ours.state_dict().items():
        layout = layout_of(name, value, 4, config in SOFTMAX)
        other = theirs.state_dict()[name]
        if layout is None:
            assert torch.equal(value, other)
            continue
        # As per_prior in modeling/dense/detector.py takes them apart.
        rows, old, new = (
            x.reshape(layout[0], -1, *x.shape[1:]) for x in (value, other, before[name])
        )
        assert torch.equal(rows[:, 1], old[:, 2]) and torch.equal(rows[:, 2], old[:, 0])
        assert torch.equal(rows[:, 0], new[:, 0]) and torch.equal(rows[:, 3], new[:, 3])
        if layout[1]:
            assert torch.equal(rows[:, 4], old[:, 3])


def test_boxes_by_class_stand_together():
    value, own = torch.arange(12.0), torch.zeros(16)
    layout = layout_of("roi_heads.box_predictor.bbox_pred.bias", own, 4, True)
    rows = rows_of_classes(value, own, layout, THEIRS, OURS)
    assert rows.view(4, 4).tolist() == [
        [0, 0, 0, 0], [8, 9, 10, 11], [0, 1, 2, 3], [0, 0, 0, 0]
    ]  # fmt: skip
    # Boxes of no class have no rows of classes.
    assert layout_of("roi_heads.box_predictor.bbox_pred.bias", torch.zeros(4), 4, True) is None


def test_as_many_classes_in_another_order():
    value = torch.arange(6.0)
    rows = rows_of_classes(value, -torch.ones(6), (2, 0, False), ("a", "b", "c"), ("c", "a", "d"))
    assert rows.tolist() == [2, 0, -1, 5, 3, -1]


def small(classes: int):
    head = torch.nn.ModuleDict({"cls_score": torch.nn.Conv2d(2, classes, 1)})
    return torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 2, 1), "head": head})


def load(path, source, target, **choice):
    torch.save(source.state_dict(), path)
    checkpointer = SafeCheckpointer(target)
    checkpointer.starting = StartingWeights(**choice)
    checkpointer.resume_or_load(str(path), resume=False)


def test_classes_of_another_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="head.cls_score.* has 5 rows, .* 3 classes"):
        load(tmp_path / "w.pth", small(5), small(4), theirs=THEIRS, ours=OURS)


def test_what_is_kept_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="corrdet"):
        load(tmp_path / "w.pth", small(3), small(4), theirs=THEIRS, ours=OURS)
    assert "2 tensors keep the rows of 2 classes (cow, cat); 2 are new (bird, bee)" in caplog.text


def test_parts_of_another_model(tmp_path):
    theirs, ours = small(4), small(4)
    before = ours["head"]["cls_score"].weight.clone()
    load(tmp_path / "w.pth", theirs, ours, parts=("backbone",))
    assert torch.equal(ours["backbone"].weight, theirs["backbone"].weight)
    assert torch.equal(ours["head"]["cls_score"].weight, before)
    with pytest.raises(CheckpointError, match=r"nothing of MODEL.WEIGHTS_PARTS \('neck',\)"):
        load(tmp_path / "w.pth", theirs, ours, parts=("neck",))


@pytest.mark.slow
def test_from_one_detector_to_another(tmp_path):
    theirs, ours = build("retinanet_baseline", 4), build("faster_rcnn_baseline", 2)
    load(tmp_path / "w.pth", theirs, ours, parts=("backbone",))
    weights = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if name.startswith("backbone.") and "fpn_" not in name or "fpn_lateral3" in name:
            assert torch.equal(value, weights[name])


def test_from_the_config(tiny_cfg):
    cfg = tiny_cfg
    assert StartingWeights.from_config(cfg) == StartingWeights(is_softmax=False)
    cfg.MODEL.WEIGHTS_CLASSES = ("tiny_val",)
    found = StartingWeights.from_config(cfg)
    classes = tuple(MetadataCatalog.get("tiny_val").thing_classes)
    assert found == StartingWeights((), classes, classes, False) and len(classes) == 10
    cfg.MODEL.WEIGHTS_CLASSES = ("a", "b", "a")
    with pytest.raises(CheckpointError, match="has 'a' twice"):
        StartingWeights.from_config(cfg)


def test_a_checkpoint_to_go_on_from_is_as_it_is(tmp_path):
    model = small(4)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    before = model["head"]["cls_score"].weight.clone()
    checkpointer.starting = StartingWeights(parts=("backbone",), theirs=THEIRS, ours=OURS)
    with torch.no_grad():
        model["head"]["cls_score"].weight.zero_()
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model["head"]["cls_score"].weight, before)
