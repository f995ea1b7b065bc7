"""Every detector trains one step with every loss that it is said to have; no other is refused.

The table of docs/losses.md is made of the same. Compositions of losses are in test_matrix.py.
"""

import re
from functools import partial

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from corrdet.activation import ACTIVATIONS
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.modeling.core.config_checks import default_config
from corrdet.modeling.rcnn import CorrdetRPN
from corrdet.names import config_value
from tests.helpers.detectors import batch_with_masks, tiny_cfg
from tests.helpers.rcnn import CASCADE, step
from tools.docs_tables import DETECTORS, REGION_PROPOSALS, detector_cell

pytestmark = pytest.mark.slow

TINY_DETR = [
    "MODEL.META_ARCHITECTURE", "CorrdetDETR",
    "MODEL.CRITERION.CLASSIFICATION", "softmax_cross_entropy",
    "MODEL.DETR.IN_FEATURE", "p5",
    "MODEL.DETR.NUM_CLASSES", 10,
    "MODEL.DETR.NUM_QUERIES", 12,
    "MODEL.DETR.HIDDEN_DIM", 32,
    "MODEL.DETR.NUM_HEADS", 4,
    "MODEL.DETR.FEEDFORWARD_DIM", 32,
    "MODEL.DETR.NUM_ENCODER_LAYERS", 1,
    "MODEL.DETR.NUM_DECODER_LAYERS", 2,
]  # fmt: skip
# Name of a column of the table, or one of its detectors -> quick config, and what is changed.
MODELS = {
    "CorrdetRetinaNet": ("retinanet_concordance", []),
    "CorrdetATSS": ("atss_baseline", []),
    "CorrdetPAA": ("paa_baseline", []),
    "CorrdetFCOS": ("fcos_baseline", []),
    "CorrdetFoveaBox": ("foveabox_baseline", []),
    "CorrdetSSD": ("ssd_baseline", []),
    "CorrdetDSSD": ("dssd_baseline", []),
    "CorrdetRefineDet": ("refinedet_baseline", []),
    "CorrdetYOLACT": ("yolact_baseline", ["MODEL.YOLACT.QUALITY", "mask"]),
    "CorrdetRCNN": ("mask_rcnn_baseline", []),
    "CorrdetRCNN, cascade": ("mask_rcnn_baseline", CASCADE),
    REGION_PROPOSALS: ("faster_rcnn_baseline", ["MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN"]),
    "CorrdetSparseRCNN": ("sparse_rcnn_baseline", []),
    "CorrdetDETR": ("sparse_rcnn_baseline", TINY_DETR),
}
KINDS = {
    "classification": CLASSIFICATION_LOSSES,
    "localization": LOCALIZATION_LOSSES,
    "couplings": COUPLINGS,
}


def test_every_detector_is_here():
    trained = {name for name, _ in META_ARCH_REGISTRY if name.startswith("Corrdet")}
    columns = {name for names in DETECTORS.values() for name in names}
    assert columns == trained | {REGION_PROPOSALS}
    assert {name.partition(",")[0] for name in MODELS} == columns


def with_losses(cfg, node, activation, kind, name):
    """The config with one loss, and others that go with it."""
    cfg.MODEL[node].CLASSIFICATION = (
        "sigmoid_cross_entropy" if activation == "sigmoid" else "softmax_cross_entropy"
    )
    cfg.MODEL[node].LOCALIZATION = "giou"
    cfg.MODEL[node].COUPLINGS = ()
    cfg.MODEL[node][kind.upper()] = (name,) if kind == "couplings" else name


def set_criteria(model, column, build):
    """Give a model the losses wherever it has some."""
    if column == "CorrdetDETR":
        model.criteria = torch.nn.ModuleList(build() for _ in model.criteria)
        return
    parts = list(getattr(model, "stages", [model]))
    if column == REGION_PROPOSALS:
        parts = [model.proposal_generator]
    elif hasattr(model, "roi_heads"):
        predictor = model.roi_heads.box_predictor
        parts = list(predictor) if isinstance(predictor, torch.nn.ModuleList) else [predictor]
    for part in parts:
        part.criterion = build()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("column", MODELS)
def test_a_step_with_every_loss(column, activation):
    config, overrides = MODELS[column]
    name = column.partition(",")[0]
    detector = None if name == REGION_PROPOSALS else META_ARCH_REGISTRY.get(name)
    node = "RPN_CRITERION" if detector is None else "CRITERION"
    key = detector.activation_key if detector else None
    published = detector.activation_of(default_config()) if detector else "sigmoid"
    if activation != published and key is None:
        activation = None  # its losses have to be refused
    cfg = tiny_cfg(config, *overrides)
    if key and activation:
        cfg.merge_from_list([key, activation])
        with_losses(cfg, node, activation, "localization", "giou")
    torch.manual_seed(0)
    model = build_model(cfg)
    images = batch_with_masks((2, 1), size=64)  # norms want more than one value
    for kind, registry in KINDS.items():
        for loss in registry:
            cell = detector_cell(name, registry[loss])
            with_losses(cfg, node, activation or published, kind, loss)
            build = CorrdetRPN.build_criterion if detector is None else detector.build_criterion
            if activation is None or activation not in registry[loss].activations:
                if published not in registry[loss].activations and key is None:
                    assert re.match(r"\[\d", cell)
                    with pytest.raises(ValueError, match="works on softmax heads, but Corrdet"):
                        build(cfg)
                continue
            if registry[loss].needs_deltas and detector and not detector.regresses_deltas:
                assert re.match(r"\[\d", cell)
                with pytest.raises(ValueError, match="compares box deltas, which Corrdet"):
                    build(cfg)
                continue
            assert cell == ("yes" if published in registry[loss].activations else f"`{activation}`")
            set_criteria(model, column, partial(build, cfg))
            check_step(model, column, images, loss)


def check_step(model, column, images, loss):
    losses, gradients = step(model.train(), images)
    if loss in COUPLINGS and not COUPLINGS[loss].takes_localization:
        assert any(loss in name for name in losses), (loss, list(losses))
    assert all(value.isfinite() for value in losses.values()), (loss, losses)
    assert all(gradient.isfinite().all() for gradient in gradients.values()), loss
    # DistributedDataParallel stops where a parameter takes no part.
    unused = "backbone.fpn_" if column == "CorrdetDETR" else "-"  # it takes one level of them
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or name.startswith(unused), (loss, name)
    branches = {
        REGION_PROPOSALS: ("objectness_logits", "anchor_deltas"),
        "CorrdetDETR": ("class_embed", "bbox_embed.layers.2"),
    }.get(column, ("cls_score", "bbox_pred"))
    for branch in branches:
        found = [g for name, g in gradients.items() if f"{branch}." in name and "weight" in name]
        assert found and sum(gradient.abs().sum() for gradient in found) > 0, (loss, branch)


def test_keys_of_activations_are_keys():
    cfg = default_config()
    for names in DETECTORS.values():
        for name in names:
            key = getattr(META_ARCH_REGISTRY.get(name), "activation_key", None) if (
                name != REGION_PROPOSALS
            ) else None  # fmt: skip
            assert key is None or config_value(cfg, key) in ACTIVATIONS
