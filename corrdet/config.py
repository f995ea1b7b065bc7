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

    # ---- Detectors with one prior for each location: CorrdetFCOS, CorrdetFoveaBox, CorrdetATSS and
    # CorrdetPAA.
    cfg.MODEL.DENSE = CN()
    cfg.MODEL.DENSE.NUM_CLASSES = 80
    cfg.MODEL.DENSE.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each tower, their norm, and what all scores are before training (RetinaNet;
    # GroupNorm since FCOS).
    cfg.MODEL.DENSE.NUM_CONVS = 4
    cfg.MODEL.DENSE.NORM = "GN"
    cfg.MODEL.DENSE.PRIOR_PROB = 0.01
    # A third branch of the head, and the weight of its loss: "centerness" (FCOS, Eq. 3; ATSS) or
    # "iou" (PAA, Sec. 3.3, with the weight 0.5). The papers implemented here go without.
    cfg.MODEL.DENSE.QUALITY = ""
    cfg.MODEL.DENSE.QUALITY_WEIGHT = 1.0
    # Of ATSS and PAA: side of the anchors in strides, and weights of the deltas (ATSS, Sec. 4.1).
    cfg.MODEL.DENSE.ANCHOR_SCALE = 8.0
    cfg.MODEL.DENSE.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # At inference. With a third branch the threshold is one of the geometric mean with its output.
    cfg.MODEL.DENSE.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.DENSE.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.DENSE.NMS_THRESH_TEST = 0.6

    cfg.MODEL.FCOS = CN()
    # Largest distance to a side of the box that a level regresses, in strides; the smallest is half
    # of it (FCOS, Sec. 3.2: 64 pixels on P3).
    cfg.MODEL.FCOS.REGRESSION_RANGE = 8.0
    # Positives are nearer to the centre than so many strides; 0 for all in the box, as published
    # first. 1.5 is Detectron2's, and FCOS's since Tian et al. 2020.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # "linear": distances are the positive parts of what the head gives, as in Detectron2.
    # "exponential": its exponential, times a learned factor for each level (FCOS, Sec. 3.2).
    cfg.MODEL.FCOS.BOX_CODING = "linear"

    # FoveaBox (Sec. III): basic scale of a level in strides, spread of the scales that a level is
    # for, and the share of the box that is positive.
    cfg.MODEL.FOVEABOX = CN()
    cfg.MODEL.FOVEABOX.BASE_SCALE = 4.0
    cfg.MODEL.FOVEABOX.ETA = 2.0
    cfg.MODEL.FOVEABOX.SIGMA = 0.4

    # ATSS (Alg. 1): candidates of a ground truth in a level.
    cfg.MODEL.ATSS = CN()
    cfg.MODEL.ATSS.TOPK = 9

    cfg.MODEL.PAA = CN()
    # Least IoU of candidates, and how many in a level (PAA, Sec. 4.1).
    cfg.MODEL.PAA.IOU_THRESHOLD = 0.1
    cfg.MODEL.PAA.TOPK = 9
    # What the mixture is fitted to: "losses" (PAA, Eq. 7); "scores" for PAA* (APE paper, Sec. 6).
    cfg.MODEL.PAA.COST = "losses"
    # Weight of the GIoU loss in "losses"; that in the authors' training.
    cfg.MODEL.PAA.COST_LOCALIZATION_WEIGHT = 1.3
    # Move boxes by score voting after NMS (PAA, Eq. 12).
    cfg.MODEL.PAA.SCORE_VOTING = True

    # ---- SSD (Liu et al. 2016), and what DSSD and RefineDet have in common with it: CorrdetSSD,
    # CorrdetDSSD and CorrdetRefineDet. The defaults are those of SSD300 on VOC.
    cfg.MODEL.SSD = CN()
    cfg.MODEL.SSD.NUM_CLASSES = 80
    cfg.MODEL.SSD.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7", "p8"]
    # Of the backbones build_ssd_resnet_fpn_backbone and build_ssd_resnet_backbone: levels after the
    # last one of the pyramid or of the ResNet, and, of the latter, their channels.
    cfg.MODEL.SSD.NUM_EXTRA_LEVELS = 3
    cfg.MODEL.SSD.EXTRA_CHANNELS = 512
    # Norm of the stages of build_ssd_resnet_backbone and of the heads of DSSD and RefineDet; those
    # of SSD have none. As published, DSSD has "BN", RefineDet none.
    cfg.MODEL.SSD.NORM = "GN"
    # "softmax" over the classes and the background, as published, or "sigmoid" of each class, for
    # losses that need it. PRIOR_PROB: with it, what all scores are before training.
    cfg.MODEL.SSD.ACTIVATION = "softmax"
    cfg.MODEL.SSD.PRIOR_PROB = 0.01
    # Default boxes (Sec. 2.2 and 3.1): the side of the images that they are for; as shares of it
    # the scale of the first level and the least and largest one of the others (Eq. 4); the aspect
    # ratios of each level, or one list for all, without 1 and without the inverse of each.
    cfg.MODEL.SSD.IMAGE_SIZE = 300
    cfg.MODEL.SSD.FIRST_SCALE = 0.1
    cfg.MODEL.SSD.SCALES = (0.2, 0.9)
    cfg.MODEL.SSD.ASPECT_RATIOS = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
    # Weights of the deltas: the inverse of the "variances" of the authors' code.
    cfg.MODEL.SSD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # A prior is positive above this IoU (Sec. 2.2, "Matching strategy").
    cfg.MODEL.SSD.IOU_THRESHOLD = 0.5
    # Negatives that are trained on for each positive of an image (Sec. 2.2, "Hard negative
    # mining"); 0 for all of them, as focal and ranking losses want it.
    cfg.MODEL.SSD.NEGATIVES_PER_POSITIVE = 3.0
    # At inference (Sec. 3). TEST.DETECTIONS_PER_IMAGE is 200 in the papers. Candidates are of each
    # level, those of the papers 400 of each class.
    cfg.MODEL.SSD.SCORE_THRESH_TEST = 0.01
    cfg.MODEL.SSD.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.SSD.NMS_THRESH_TEST = 0.45

    # DSSD (Fu et al. 2017): channels of the deconvolution modules (Fig. 3) and of the prediction
    # modules (Fig. 2, c).
    cfg.MODEL.DSSD = CN()
    cfg.MODEL.DSSD.DECONVOLUTION_CHANNELS = 512
    cfg.MODEL.DSSD.PREDICTION_CHANNELS = 1024

    # RefineDet (Zhang et al. 2018, Sec. 3): channels of the transfer connection blocks; side of the
    # anchors in strides, and their aspect ratios; and below which objectness of the first step an
    # anchor is left out (1 minus the paper's theta).
    cfg.MODEL.REFINEDET = CN()
    cfg.MODEL.REFINEDET.CONNECTION_CHANNELS = 256
    cfg.MODEL.REFINEDET.ANCHOR_SCALE = 4.0
    cfg.MODEL.REFINEDET.ASPECT_RATIOS = (0.5, 1.0, 2.0)
    cfg.MODEL.REFINEDET.MIN_OBJECTNESS = 0.01

    # ---- YOLACT (Bolya et al. 2019); defaults as published. Of Detectron2's own keys it reads
    # MODEL.ANCHOR_GENERATOR, and MODEL.MASK_ON has to be True.
    cfg.MODEL.YOLACT = CN()
    cfg.MODEL.YOLACT.NUM_CLASSES = 80
    # Prototypes come from the first one, with twice its resolution.
    cfg.MODEL.YOLACT.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # k in Sec. 3, and the channels of the layers before (Fig. 3).
    cfg.MODEL.YOLACT.NUM_PROTOTYPES = 32
    cfg.MODEL.YOLACT.PROTONET_DIM = 256
    # Of the head and the layers before the prototypes: "" or "GN", to train from scratch.
    cfg.MODEL.YOLACT.NORM = ""
    # An anchor is negative with a lower IoU than the first, positive from the second on.
    cfg.MODEL.YOLACT.IOU_THRESHOLDS = (0.4, 0.5)
    # Weights of the deltas: the inverse of SSD's variances.
    cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # Of each image, the hardest negatives that are trained on.
    cfg.MODEL.YOLACT.NEGATIVES_PER_POSITIVE = 3.0
    # Weight of the loss of masks (Sec. 5), and how many of an image it is taken of at most.
    cfg.MODEL.YOLACT.MASK_WEIGHT = 6.125
    cfg.MODEL.YOLACT.MAX_MASKS = 100
    # Weight of the semantic segmentation's loss (Sec. 3.3).
    cfg.MODEL.YOLACT.SEMANTIC_WEIGHT = 1.0
    # What couplings take for the IoU of a positive, and so beta_img: that of its "box" or "mask".
    cfg.MODEL.YOLACT.QUALITY = "box"
    # At inference. TOPK_CANDIDATES_TEST: of an image. NMS: "fast" (Sec. 3.4) or "exact";
    # FAST_NMS_TOPK: of each class, n in the paper.
    cfg.MODEL.YOLACT.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.YOLACT.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.YOLACT.NMS = "fast"
    cfg.MODEL.YOLACT.NMS_THRESH_TEST = 0.5
    cfg.MODEL.YOLACT.FAST_NMS_TOPK = 200

    # ---- Sparse R-CNN (Sun et al. 2021); defaults as published. Of Detectron2's own keys it reads
    # MODEL.ROI_HEADS.IN_FEATURES and MODEL.ROI_BOX_HEAD.POOLER_*; TEST.DETECTIONS_PER_IMAGE is the
    # number of pairs of a proposal and a class that are detected.
    cfg.MODEL.SPARSE_RCNN = CN()
    cfg.MODEL.SPARSE_RCNN.NUM_CLASSES = 80
    # 100 or 300 (Table 1).
    cfg.MODEL.SPARSE_RCNN.NUM_PROPOSALS = 100
    cfg.MODEL.SPARSE_RCNN.NUM_STAGES = 6
    # Channels of the proposals' features; the backbone's features must have as many.
    cfg.MODEL.SPARSE_RCNN.HIDDEN_DIM = 256
    cfg.MODEL.SPARSE_RCNN.NUM_ATTENTION_HEADS = 8
    cfg.MODEL.SPARSE_RCNN.FEEDFORWARD_DIM = 2048
    # Channels between the two convolutions of the dynamic interaction (Fig. 4).
    cfg.MODEL.SPARSE_RCNN.DYNAMIC_DIM = 64
    # Layers before classification and before box regression.
    cfg.MODEL.SPARSE_RCNN.NUM_CLS_LAYERS = 1
    cfg.MODEL.SPARSE_RCNN.NUM_BOX_LAYERS = 3
    # The score that all classes start with, as in RetinaNet.
    cfg.MODEL.SPARSE_RCNN.PRIOR_PROB = 0.01
    # Weights of the matching's costs (Eq. 1): of the focal loss, with alpha 0.25 and gamma 2
    # whatever the classification loss is; of L1; of GIoU.
    cfg.MODEL.SPARSE_RCNN.CLASS_COST = 2.0
    cfg.MODEL.SPARSE_RCNN.L1_COST = 5.0
    cfg.MODEL.SPARSE_RCNN.GIOU_COST = 2.0
    # Weight of the L1 loss of boxes in units of the image's width and height, which comes on top of
    # MODEL.CRITERION's losses; 0 for none. The published weights of those, focal loss 2 and GIoU 2,
    # are set in configs/Base-SparseRCNN.yaml.
    cfg.MODEL.SPARSE_RCNN.L1_WEIGHT = 5.0

    # ---- Res2Net (Gao et al. 2021): the number of parts of a block's channels.
    # MODEL.RESNETS.WIDTH_PER_GROUP is the width of a part in res2; "26w4s" has 26 and 4.
    cfg.MODEL.RES2NET = CN()
    cfg.MODEL.RES2NET.SCALE = 4

    # ---- DETR (Carion et al. 2020), for evaluation only; defaults as published.
    cfg.MODEL.DETR = CN()
    cfg.MODEL.DETR.NUM_CLASSES = 80
    cfg.MODEL.DETR.NUM_QUERIES = 100
    cfg.MODEL.DETR.IN_FEATURE = "res5"
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    cfg.MODEL.DETR.NUM_HEADS = 8
    cfg.MODEL.DETR.FEEDFORWARD_DIM = 2048
    cfg.MODEL.DETR.NUM_ENCODER_LAYERS = 6
    cfg.MODEL.DETR.NUM_DECODER_LAYERS = 6
    # Weights of the costs of the matching, for beta_img: of the probability, of L1, of GIoU.
    cfg.MODEL.DETR.CLASS_COST = 1.0
    cfg.MODEL.DETR.L1_COST = 5.0
    cfg.MODEL.DETR.GIOU_COST = 2.0

    for section, keys in SECTIONS.items():
        node = cfg
        for name in section.split("."):
            node = node.setdefault(name, CN())
        for name, key in keys.items():
            node[name] = copy.deepcopy(key.default)
