"""What evaluations measure, by name: a metric that is watched and never comes is found early."""

import re
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from corrdet.coco import detections_from_coco, ground_truth_from_coco
from corrdet.errors import ConfigError
from corrdet.measures import measure
from corrdet.names import function_of, unknown_name

_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASKS = re.compile(r"(^|/)(bbox|segm|keypoints)/")
_IMAGE_MEASURES = (
    "beta_img",
    "beta_img-images",
    "AIC",
    "AIC-mean",
    *(f"{ap}_img_{bound}" for ap in ("AP", "AP50", "AP75") for bound in ("upper", "lower")),
)


def evaluation_names(cfg: CfgNode) -> set[str]:
    """What CorrdetTrainer's evaluators measure of the test sets, such as ``bbox/AP``.

    Losses on the test sets are not among them, as their names are the detector's.
    """
    empty = ground_truth_from_coco(
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": "any"}]}
    )
    measures = set(measure(empty, detections_from_coco([], empty)).measures)
    measures |= {*_COCO, f"AP-maxDets{cfg.TEST.DETECTIONS_PER_IMAGE}"}
    tasks = {"bbox": measures | set(_IMAGE_MEASURES)}
    if cfg.MODEL.MASK_ON:
        tasks["segm"] = measures
    if cfg.MODEL.KEYPOINT_ON:
        tasks["keypoints"] = {*_COCO, f"AP-maxDets{cfg.TEST.DETECTIONS_PER_IMAGE}"}
    names = set()
    for test_set in cfg.DATASETS.TEST:
        prefix = f"{test_set}/" if len(cfg.DATASETS.TEST) > 1 else ""
        classes = MetadataCatalog.get(test_set).get("thing_classes") or ()
        by_class = {f"{ap}-{c}" for ap in ("AP", "AP50") for c in classes}
        for task, its_measures in tasks.items():
            names |= {f"{prefix}{task}/{name}" for name in its_measures | by_class}
    return names


def has_own_evaluators(trainer: type) -> bool:
    """Whether a subclass may measure what CorrdetTrainer does not."""
    methods = (function_of(getattr(trainer, name)) for name in ("build_evaluator", "test"))
    return not all(method.__module__.startswith("corrdet.") for method in methods)


def check_evaluation_name(cfg: CfgNode, key: str, metric: str) -> None:
    """Before training: a name that could only be an evaluation's.

    Raises:
        ConfigError: CorrdetTrainer's evaluators will not measure it.
    """
    if _TASKS.search(metric):
        names = evaluation_names(cfg)
        # Before data sets are loaded their classes may not be known.
        known = [MetadataCatalog.get(name).get("thing_classes") for name in cfg.DATASETS.TEST]
        if None in known and re.search(r"/AP(50)?-", metric):
            return
        if metric not in names:
            raise ConfigError(f"{key}: " + unknown_name("metric", metric, names))


def check_expected_results(cfg: CfgNode) -> None:
    """Before training: ``TEST.EXPECTED_RESULTS``, which Detectron2 compares after it.

    Raises:
        ConfigError: the evaluation of the test set does not measure one of them.
    """
    if len(cfg.DATASETS.TEST) == 1:  # of several it is open which one is meant
        for task, metric, *_ in cfg.TEST.EXPECTED_RESULTS:
            name = f"{task.removesuffix('_TTA')}/{metric}"
            if not _TASKS.search(name):
                tasks = {known.split("/")[0] for known in evaluation_names(cfg)}
                raise ConfigError("TEST.EXPECTED_RESULTS: " + unknown_name("task", task, tasks))
            check_evaluation_name(cfg, "TEST.EXPECTED_RESULTS", name)


def check_logged_name(cfg: CfgNode, metric: str, logged: Iterable[str]) -> None:
    """After a step of a training in which only Detectron2 and corrdet log: any name.

    Args:
        cfg: the config.
        metric: that is watched.
        logged: what the step has logged.

    Raises:
        ConfigError: neither steps nor evaluations will log it.
    """
    sets = cfg.DATASETS.TEST
    prefixes = [f"{name}/val_" for name in sets] if len(sets) > 1 else ["val_"]
    losses = {prefix + name for name in logged if "loss" in name for prefix in prefixes}
    names = evaluation_names(cfg) | set(logged) | (losses if cfg.TEST.EVAL_LOSS else set())
    if metric not in names:
        raise ConfigError(
            "TEST.BEST_CHECKPOINT.METRIC or SOLVER.EARLY_STOPPING.METRIC: "
            + unknown_name("metric", metric, names)
        )
