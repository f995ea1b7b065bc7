"""Region-based detectors that tests build, small, and Detectron2's of the same weights."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from corrdet import add_corrdet_config

CASCADE = [
    "MODEL.ROI_HEADS.NAME", "CorrdetCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
]  # fmt: skip
# As the authors of RS loss train.
RANKED = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "CorrdetRPN",
    "MODEL.RPN.SAMPLE", False,
    "MODEL.RPN_CRITERION.CLASSIFICATION", "rank_sort",
    "MODEL.RPN_CRITERION.LOCALIZATION", "giou",
    "MODEL.RPN_CRITERION.LOCALIZATION_WEIGHTED_BY", "score",
    "MODEL.ROI_HEADS.SAMPLE", False,
    "MODEL.ROI_BOX_HEAD.ACTIVATION", "sigmoid",
    "MODEL.ROI_BOX_HEAD.PRIOR_PROB", 0.5,
    "MODEL.CRITERION.CLASSIFICATION", "rank_sort",
    "MODEL.CRITERION.LOCALIZATION", "giou",
    "MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY", "score",
]  # fmt: skip


def rcnn_cfg(masks=False, overrides=(), **criterion):
    """The quick R-CNN, smaller, with overrides and these keys of MODEL.CRITERION."""
    cfg = get_cfg()
    add_corrdet_config(cfg)
    name = "mask_rcnn_harmonicdet" if masks else "faster_rcnn_baseline"
    cfg.merge_from_file(f"configs/quick/{name}.yaml", False)
    cfg.merge_from_list(
        [
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
            "MODEL.FPN.OUT_CHANNELS", 32,
            "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60,
            "MODEL.RPN.POST_NMS_TOPK_TEST", 60,
        ]
    )  # fmt: skip
    cfg.MODEL.CRITERION.LOCALIZATION = "smooth_l1"
    cfg.MODEL.CRITERION.COUPLINGS = ()
    cfg.merge_from_list(list(overrides))
    for key, value in criterion.items():
        cfg.MODEL.CRITERION[key] = value
    return cfg


def build_rcnn(*overrides, masks=False, **criterion):
    torch.manual_seed(0)
    return build_model(rcnn_cfg(masks, overrides, **criterion))


def theirs_of(cfg, ours):
    """Detectron2's own, with the weights of ours."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    is_cascade = cfg.MODEL.ROI_HEADS.NAME == "CorrdetCascadeROIHeads"
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads" if is_cascade else "StandardROIHeads"
    theirs = build_model(cfg)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def step(model, images, logged=None):
    """Losses and gradients, by name; what is logged goes into ``logged``."""
    torch.manual_seed(0)  # regions are sampled
    model.zero_grad()
    with EventStorage() as storage:
        losses = model(images)
    if logged is not None:
        logged |= {name: value for name, (value, _) in storage.latest().items()}
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def train_through(model, batches):
    """A step on each batch, by name, and detections: all finite, every parameter is used."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for case, images in batches.items():
        losses, gradients = step(model.train(), images)
        assert all(x.isfinite().all() for x in [*losses.values(), *gradients.values()]), case
        # DistributedDataParallel stops where a parameter takes no part.
        assert all(p.grad is not None for p in model.parameters()), case
        optimizer.step()
        with torch.no_grad():
            outputs = model.eval()(images)
        assert [output.keys() for output in outputs] == [{"instances", "positives"}] * len(images)
