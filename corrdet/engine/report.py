"""The report of an evaluation of train_net.py."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from corrdet.analysis.metrics import metrics
from corrdet.report import TrainingFileError, read_training, write_report

from .evaluator import CorrelationEvaluator


def report_evaluation(
    cfg: CfgNode, dataset_name: str, evaluator: CorrelationEvaluator, reported: Mapping
) -> list[str]:
    """Write ``OUTPUT_DIR/inference/<data set>/report.html``, of masks ``report-segm.html``.

    With pictures where the data set has a folder of images, with curves where ``OUTPUT_DIR`` has
    the metrics of the training, and with the measures that need the model, such as beta_img.
    Without confidence intervals, which would take long.

    Args:
        cfg: of the evaluation.
        dataset_name: what was evaluated.
        evaluator: after ``evaluate()``.
        reported: what ``evaluate()`` returned: IoU type -> name -> value.

    Returns:
        the paths written; none where the data set has no ground truth.
    """
    name = Path(cfg.OUTPUT_DIR).absolute().name
    training = []
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "metrics.json")):
        try:
            training = [read_training(cfg.OUTPUT_DIR, name)]
        except TrainingFileError as error:
            print(f"The report has no curves: {error}")
    images = MetadataCatalog.get(dataset_name).get("image_root", None)
    paths = []
    for iou_type, measured in evaluator.measured.items():
        if not measured.matches.num_gt[0].any():
            continue
        results = [replace(measured, name=name)]
        content = metrics(results, None)
        model_measures = {
            key: value
            for key, value in reported.get(iou_type, {}).items()
            if key.startswith(("beta_img", "AIC")) or "_img_" in key
        }
        file_name = "report.html" if iou_type == "bbox" else f"report-{iou_type}.html"
        path = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, file_name)
        write_report(
            path,
            results,
            {**content, **model_measures},
            notes=content["notes"],
            images=images if images and os.path.isdir(images) else None,
            training=training,
        )
        paths.append(path)
    return paths
