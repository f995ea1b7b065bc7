"""The configuration: what corrdet adds to Detectron2's, each key declared where it is read."""

import copy
from collections.abc import Mapping
from typing import Any

from corrdet.names import config_value
from corrdet.options import Key

# Full name of a node, such as "MODEL.ATSS" -> its keys, and what they are about.
SECTIONS: dict[str, dict[str, Key]] = {}
ABOUT: dict[str, str] = {}


def declare(section: str, about: str = "", **keys: Key) -> dict[str, Key]:
    """Declare keys of the config, beside the code that reads them.

    :func:`add_corrdet_config` adds them, :func:`check_keys` checks their ranges, and
    ``make docs-tables`` lists them.

    Args:
        section: full name of the node, such as ``MODEL.ATSS``; it may be one of Detectron2's.
        about: a line on the section, such as the paper it is of.
        keys: by name.

    Returns:
        the keys.

    Raises:
        ValueError: one is declared already.
    """
    known = SECTIONS.setdefault(section, {})
    for name, key in keys.items():
        if name in known:
            raise ValueError(f"{section}.{name} is declared already")
        known[name] = key
    if about:
        ABOUT[section] = about
    return keys


def check_keys(cfg: Mapping[str, Any], *sections: str) -> None:
    """
    Raises:
        ConfigError: a value of these sections is out of its range; the message starts with its key.
    """
    for section in sections:
        node = config_value(cfg, section)
        for name, key in SECTIONS[section].items():
            key.check(f"{section}.{name}", node[name])


def add_corrdet_config(cfg) -> None:
    """Add corrdet's keys and their defaults to a Detectron2 config, in place.

    Registers corrdet's models and data sets with Detectron2, too.

    Args:
        cfg (CfgNode): the result of ``detectron2.config.get_cfg()``.
    """
    from detectron2.config import CfgNode as CN

    import corrdet.data
    import corrdet.engine
    import corrdet.modeling  # noqa: F401  (these declare and register)
    from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
    from corrdet.losses.criterion import COUPLING_KEYS

    # ---- The criterion: one classification loss, one localization loss, any number of couplings.
    # Names are those of the registries in corrdet.losses; docs/losses.md lists them, and which go
    # together. The options of the loss named `some_loss` are the keys of the node SOME_LOSS.
    cfg.MODEL.CRITERION = CN()
    cfg.MODEL.CRITERION.CLASSIFICATION = "sigmoid_focal"
    cfg.MODEL.CRITERION.CLASSIFICATION_WEIGHT = 1.0
    cfg.MODEL.CRITERION.LOCALIZATION = "smooth_l1"
    cfg.MODEL.CRITERION.LOCALIZATION_WEIGHT = 1.0
    # Weight the localization loss of each positive by its "iou" or "score", or "none" (APE paper,
    # Sec. 7, FCOS 800 and PAA*). The mean weight of the positives is 1.
    cfg.MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY = "none"
    # For example ("correlation",).
    cfg.MODEL.CRITERION.COUPLINGS = ()

    def options(name, **defaults):
        node = cfg.MODEL.CRITERION[name] = CN()
        for key, default in defaults.items():
            setattr(node, key, default)

    # -- Classification losses.
    # Focal loss (Lin et al. 2017, Eq. 5).
    options("SIGMOID_FOCAL", ALPHA=0.25, GAMMA=2.0)
    # Quality Focal Loss (Li et al. 2020): the exponent of |IoU - score|.
    options("QUALITY_FOCAL", BETA=2.0)
    # Varifocal Loss (Zhang et al. 2021): weight and exponent of the negatives.
    options("VARIFOCAL", ALPHA=0.75, GAMMA=2.0)
    # GHM-C (Li et al. 2019): bins of the gradient norm, momentum of the running mean of counts.
    options("GHM_C", BINS=30, MOMENTUM=0.75)
    # DR loss (Qian et al. 2020): margin, smoothness L of the hinge, and the spread of the weights.
    options("DR", MARGIN=0.5, SMOOTHNESS=6.0, LAM_POS=1.0, LAM_NEG=0.0798)
    # The ranking losses. DELTA: half of the width in which the step H rises, in logits; or, of the
    # smooth distances, how far below a positive negatives count. LAM: slope of the sigmoid.
    # GLOBAL_BATCH: rank the samples of all processes together. MEMORY: and the negatives of so many
    # batches before, as constants. Both are described in docs/losses.md.
    # AP Loss (Chen et al. 2019; APE paper, Eq. 3 to 7).
    options("AP", DELTA=1.0, INTERPOLATE=True, GLOBAL_BATCH=False, MEMORY=0)
    # Pairwise error (APE paper, Eq. 8): DISTANCE "step", "sigmoid" or "cross_entropy"; BALANCE
    # "rank" or "negatives".
    options(
        "PAIRWISE_ERROR",
        DISTANCE="cross_entropy",
        BALANCE="rank",
        LAM=8.0,
        DELTA=0.5,
        GLOBAL_BATCH=False,
        MEMORY=0,
    )
    # Adaptive Pairwise Error (APE paper, Eq. 9 and 10).
    options("APE", LAM=8.0, WEIGHT_BY_IOU=True, GLOBAL_BATCH=False, MEMORY=0)
    # Rank & Sort Loss (Oksuz et al. 2021). SELF_BALANCE: scale the localization loss to the value
    # of the classification loss.
    options("RANK_SORT", DELTA=0.5, SELF_BALANCE=True, GLOBAL_BATCH=False, MEMORY=0)
    # aLRP Loss (Oksuz et al. 2020). SELF_BALANCE: scale its localization part to the value of the
    # whole.
    options("ALRP", DELTA=1.0, SELF_BALANCE=True, GLOBAL_BATCH=False, MEMORY=0)

    # -- Localization losses.
    # Smooth L1 on box deltas (Girshick 2015, Eq. 3); 0 is the L1 loss. Detectron2's own key for it,
    # MODEL.RETINANET.SMOOTH_L1_LOSS_BETA, has the default 0.1, but its RetinaNet configs set 0, as
    # published. A config where the two differ, other than by setting this one, is refused.
    options("SMOOTH_L1", BETA=0.0)
    # Balanced L1 (Libra R-CNN, Pang et al. 2019).
    options("BALANCED_L1", ALPHA=0.5, GAMMA=1.5)
    # GHM-R (Li et al. 2019): corner of the authentic smooth L1, and as GHM_C.
    options("GHM_R", MU=0.02, BINS=10, MOMENTUM=0.7)
    # IoU-balanced localization loss (Eq. 3 and 4): exponent of the IoU, w_loc, corner of smooth L1.
    # WEIGHT None: normalized, Eq. 5.
    options("IOU_BALANCED_SMOOTH_L1", LAM=1.5, WEIGHT=3.049, DELTA=0.111)
    # Harmonic IoU loss (HarmonicDet, Eq. 10): at most 1.
    options("HARMONIC_IOU", GAMMA=0.8)
    # HarmonicDet's whole localization loss (Eq. 11): smooth L1 + ALPHA * Harmonic IoU.
    options("SMOOTH_L1_HARMONIC_IOU", BETA=0.0, ALPHA=1.5, GAMMA=0.8)

    # -- Couplings. All have WEIGHT (1.0 but where it is said), WARMUP_ITERS (0; the weight rises
    # linearly from 0 over so many iterations) and SCHEDULE ((); (iteration, factor) pairs: the
    # weight is multiplied by the factor, which is linear between them). Of couplings that change
    # the other losses, "harmonic" and "iou_balanced", the weight says by how much: 0 not at all, 1
    # as the paper has it.
    # Association loss: KIND "pse" (Eq. 8) or "pce"; k; MAX_SCORE: the highest score of any class in
    # place of that of the ground-truth class.
    options("ASSOCIATION", KIND="pse", BETA=1.0, K=1.0, MAX_SCORE=False)
    # Correlation Loss, L = WEIGHT * (1 - rho(IoU, score)) over the positives of the batch.
    # WEIGHT: lambda_corr; what won in the thesis for RetinaNet: spearman 0.1.
    # COEFFICIENT: "pearson" (Eq. 2.1), "spearman" (Eq. 2.2) or "concordance" (Eq. 2.3).
    # STRENGTH: of the soft ranks, for "spearman". None: from the spread of the scores, see
    # corrdet.losses.spearman_correlation.
    # GRADIENT: what it reaches: "scores", "ious" or "both" (Sec. 5.5.4: "scores" does best).
    # GLOBAL_BATCH: over the positives of all processes. MEMORY: and of so many batches before, as
    # constants.
    options(
        "CORRELATION",
        WEIGHT=0.1,
        COEFFICIENT="concordance",
        STRENGTH=None,
        GRADIENT="scores",
        GLOBAL_BATCH=False,
        MEMORY=0,
    )
    # Harmonic loss (HarmonicDet, Eq. 2 and 3): has no options.
    options("HARMONIC")
    # Task-contrastive loss (HarmonicDet, Eq. 8).
    options("TASK_CONTRASTIVE", MARGIN=0.2)
    # IoU-balanced classification loss (Eq. 1 and 2): exponent of the IoU.
    options("IOU_BALANCED", ETA=1.5)

    # What couplings have in common, and one's own losses, registered before: their functions'
    # defaults.
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            defaults = {key.upper(): default for key, default in loss.options.items()}
            if registry is COUPLINGS:
                defaults |= COUPLING_KEYS
            node = cfg.MODEL.CRITERION.setdefault(name.upper(), CN())
            for key, default in defaults.items():
                if key not in node:
                    setattr(node, key, default)

    # The losses of the region proposals of CorrdetRPN (MODEL.PROPOSAL_GENERATOR.NAME): all of the
    # above once more, as both may be used with options of their own.
    cfg.MODEL.RPN_CRITERION = cfg.MODEL.CRITERION.clone()
    cfg.MODEL.RPN_CRITERION.CLASSIFICATION = "sigmoid_cross_entropy"

    # ---- Data.
    # One's own COCO-format data sets, each "name=annotations.json:image_folder".
    cfg.DATASETS.REGISTER = ()
    # True: images that cannot be read are found before training, named and left out.
    # False: missing ones are an error before training, a damaged one when it is read.
    cfg.DATASETS.SKIP_UNREADABLE = False
    # True: degenerate or out-of-image boxes are named and left out. False: they are an error.
    cfg.DATASETS.SKIP_BAD_ANNOTATIONS = False
    # Detectron2's INPUT.CROP, for a share of the images only, and, if sizes are given, of the image
    # with one of these as its shorter side. DETR and Sparse R-CNN: 0.5 and (400, 500, 600).
    cfg.INPUT.CROP.PROBABILITY = 1.0
    cfg.INPUT.CROP.MIN_SIZE_BEFORE = ()
    # Augmentation as in SSD (Liu et al. 2016, Sec. 2.2 and 3.6) in training, before resizing and
    # flipping: distorted colors, expansion, and crops by the IoU with the objects.
    cfg.INPUT.SSD_AUGMENTATION = False
    # (height, width) of all images in training and at test, in place of the keys MIN_SIZE_* and
    # MAX_SIZE_*; the aspect ratio is not kept. () for none.
    cfg.INPUT.FIXED_SIZE = ()

    # ---- Training and evaluation.
    # "SGD" (Detectron2's own, with momentum) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE, Detectron2's own key, can also be "full_model".
    # Measure beta_img (the thesis, Eq. 3.1), which needs the ground truth at evaluation.
    cfg.TEST.BETA_IMG = True
    # Also measure the upper and lower bounds of AP at image level (the thesis, Table 3.1), which
    # takes two more post-processings of every image; needs BETA_IMG.
    cfg.TEST.IMAGE_BOUNDS = False
    # With --eval-only, write OUTPUT_DIR/inference/<data set>/report.html: see corrdet.analysis.
    cfg.TEST.REPORT = False

    for section, keys in SECTIONS.items():
        node = cfg
        for name in section.split("."):
            node = node.setdefault(name, CN())
        for name, key in keys.items():
            node[name] = copy.deepcopy(key.default)
