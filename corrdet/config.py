"""Every configuration key that corrdet adds to Detectron2's, with its default and its source."""


def add_corrdet_config(cfg) -> None:
    """Add corrdet's keys and their defaults to a Detectron2 config, in place.

    Args:
        cfg (CfgNode): the result of ``detectron2.config.get_cfg()``.
    """
    from detectron2.config import CfgNode as CN

    from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES

    # ---- The criterion: one classification loss, one localization loss, any number of couplings.
    # Names are those of the registries in corrdet.losses.criterion. The options of the loss named
    # `some_loss` are the keys of the node SOME_LOSS.
    cfg.MODEL.CRITERION = CN()
    cfg.MODEL.CRITERION.CLASSIFICATION = "sigmoid_focal"
    cfg.MODEL.CRITERION.CLASSIFICATION_WEIGHT = 1.0
    cfg.MODEL.CRITERION.LOCALIZATION = "smooth_l1"
    cfg.MODEL.CRITERION.LOCALIZATION_WEIGHT = 1.0
    # For example ("correlation",).
    cfg.MODEL.CRITERION.COUPLINGS = ()

    # Focal loss (Lin et al. 2017, Eq. 5).
    cfg.MODEL.CRITERION.SIGMOID_FOCAL = CN()
    cfg.MODEL.CRITERION.SIGMOID_FOCAL.ALPHA = 0.25
    cfg.MODEL.CRITERION.SIGMOID_FOCAL.GAMMA = 2.0

    # Smooth L1 on box deltas (Girshick 2015, Eq. 3); 0 is the L1 loss. Detectron2's own key for it,
    # MODEL.RETINANET.SMOOTH_L1_LOSS_BETA, has the default 0.1, but its RetinaNet configs set 0, as
    # published. A config where the two differ, other than by setting this one, is refused.
    cfg.MODEL.CRITERION.SMOOTH_L1 = CN()
    cfg.MODEL.CRITERION.SMOOTH_L1.BETA = 0.0

    # Correlation Loss, L = WEIGHT * (1 - rho(IoU, score)) over the positives of the batch.
    cfg.MODEL.CRITERION.CORRELATION = CN()
    # lambda_corr; what won in the thesis for RetinaNet: spearman 0.1.
    cfg.MODEL.CRITERION.CORRELATION.WEIGHT = 0.1
    # "pearson" (Eq. 2.1), "spearman" (Eq. 2.2) or "concordance" (Eq. 2.3).
    cfg.MODEL.CRITERION.CORRELATION.COEFFICIENT = "concordance"
    # Strength of the soft ranks, for "spearman". None: from the spread of the scores, see
    # corrdet.losses.spearman_correlation.
    cfg.MODEL.CRITERION.CORRELATION.STRENGTH = None

    # One's own losses, registered before: their functions' defaults.
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            options = {key.upper(): default for key, default in loss.options.items()}
            if registry is COUPLINGS:
                options["WEIGHT"] = 1.0
            node = cfg.MODEL.CRITERION.setdefault(name.upper(), CN())
            for key, default in options.items():
                if key not in node:
                    setattr(node, key, default)

    # ---- Data.
    # One's own COCO-format data sets, each "name=annotations.json:image_folder".
    cfg.DATASETS.REGISTER = ()
    # True: images that cannot be read are found before training, named and left out.
    # False: missing ones are an error before training, a damaged one when it is read.
    cfg.DATASETS.SKIP_UNREADABLE = False
    # True: degenerate or out-of-image boxes are named and left out. False: they are an error.
    cfg.DATASETS.SKIP_BAD_ANNOTATIONS = False

    # ---- Training and evaluation.
    # "SGD" (Detectron2's own, with momentum) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Measure beta_img (the thesis, Eq. 3.1), which needs the ground truth at evaluation.
    cfg.TEST.BETA_IMG = True
    # Also measure the upper and lower bounds of AP at image level (the thesis, Table 3.1), which
    # takes two more post-processings of every image; needs BETA_IMG.
    cfg.TEST.IMAGE_BOUNDS = False
    # With --eval-only, write OUTPUT_DIR/inference/<data set>/report.html: see corrdet.analysis.
    cfg.TEST.REPORT = False
