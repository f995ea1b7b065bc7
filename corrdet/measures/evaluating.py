"""One call from files to measures."""

import os
from typing import Any

from corrdet.coco import (
    Detections,
    GroundTruth,
    detections_from,
    ground_truth_from_coco,
    read_detections,
    read_ground_truth,
)

from .results import Results, measure


def evaluate(
    ground_truth: str | os.PathLike | dict | GroundTruth,
    detections: Any,
    *,
    iou_type: str = "bbox",
    form: str = "auto",
    skip_bad: bool = False,
    name: str = "",
    lrp_thresholds: str = "scores",
    max_detections: int | None = None,
) -> Results:
    """All measures of results, as ``python -m corrdet.analysis`` has them.

    Args:
        ground_truth: a path, the content of an annotation file, or arrays.
        detections: a path, the content of a results file of any framework that
            :func:`corrdet.coco.detections_from` recognises, or arrays.
        iou_type: "bbox" or "segm".
        form: of the results, see :func:`corrdet.coco.detections_from`.
        skip_bad: leave out rows that cannot be used, and note how many.
        name: of the results, for tables.
        lrp_thresholds: "scores", or "grid" for oLRP as it was defined in 2018.
        max_detections: see :func:`match`.

    Raises:
        CocoFileError: a file or content is not what it should be.
        ReadError: a file cannot be read.
    """
    if isinstance(ground_truth, str | os.PathLike):
        ground_truth = read_ground_truth(ground_truth, iou_type, skip_bad=skip_bad)
    elif not isinstance(ground_truth, GroundTruth):
        ground_truth = ground_truth_from_coco(ground_truth, iou_type, skip_bad=skip_bad)
    if isinstance(detections, str | os.PathLike):
        detections = read_detections(
            detections, ground_truth, iou_type, form=form, skip_bad=skip_bad
        )
    elif not isinstance(detections, Detections):
        detections = detections_from(
            detections, ground_truth, iou_type, form=form, skip_bad=skip_bad
        )
    return measure(
        ground_truth,
        detections,
        iou_type=iou_type,
        name=name,
        lrp_thresholds=lrp_thresholds,
        max_detections=max_detections,
    )
