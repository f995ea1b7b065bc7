"""COCO evaluation with the measures of how well scores and boxes agree."""

import contextlib
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Collection, Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from pycocotools.cocoeval import COCOeval

from corrdet.coco import GroundTruth, detections_from_coco, ground_truth_from_coco
from corrdet.config_keys import declare
from corrdet.data.coco import read_annotations, used_part
from corrdet.files import atomic_write
from corrdet.measures import Results, inconsistency, measure, rank_correlation
from corrdet.measures.matching import MAX_DETECTIONS
from corrdet.options import BOOL, Key

declare(
    "TEST",
    BETA_IMG=Key(
        True,
        BOOL,
        "measure beta_img (the thesis, Eq. 3.1), which needs the ground truth at evaluation",
    ),
    IMAGE_BOUNDS=Key(
        False,
        BOOL,
        "measure the upper and lower bounds of AP at image level, too (the thesis, Table 3.1), "
        "which takes two more post-processings of every image; needs BETA_IMG",
    ),
    REPORT=Key(
        False,
        BOOL,
        "with --eval-only, write OUTPUT_DIR/inference/<data set>/report.html: see corrdet.analysis",
    ),
)


logger = logging.getLogger(__name__)

BOUNDS = ("upper", "lower")


class CorrelationEvaluator(COCOEvaluator):
    """AP by pycocotools, with the measures of :func:`measure` beside it, in percent.

    ``beta_cls`` (thesis "Correlation Loss", Eq. 3.2): Spearman's correlation of score and IoU over
    the true positives of a class, averaged over classes. ``beta_img`` (Eq. 3.1): the same over the
    positives of an image before post-processing, averaged over images; only with models that
    output ``positives``, as ``AIC``, the sum of their abs(score - IoU), and ``AIC-mean``, its mean
    in percent. Classes and images where a correlation is not defined are left out;
    ``beta_cls-classes`` and ``beta_img-images`` say how many were averaged. Models that output
    ``instances_upper`` and ``instances_lower`` get the bounds at image level, ``AP_img_upper`` and
    so on. Measures by class are written to ``measures.json`` beside the detections.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        max_dets_per_image: int | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
        used: Sequence[dict] | None = None,
        detections_per_image: int = MAX_DETECTIONS,
    ):
        """
        Args:
            dataset_name: in COCO format, or convertible by Detectron2.
            output_dir: for the detections in COCO's results format, and the measures by class.
            tasks: as COCOEvaluator's, as are the others.
            distributed: collect the results of all processes.
            max_dets_per_image: for AP, 100 if not given.
            kpt_oks_sigmas: of keypoints; COCO's if not given.
            used: dataset dicts, where some of the file's images or objects are not to count; all
                if not given.
            detections_per_image: how many the detector gives. AP is that of the 100 best of
                a class, as COCO's; with more than 100 here, ``AP-maxDets<number>`` is of so many.

        Raises:
            CocoFileError: the annotation file is not JSON.
            ValueError: it is to be made, and there is no ``output_dir`` for it.
        """
        # Not COCOEvaluator's constructor: it parses the file, which may have been parsed already.
        self._logger = logging.getLogger(COCOEvaluator.__module__)
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        # The official implementation; Detectron2's fast one is approximate, and compiled.
        self._use_fast_impl = False
        self._max_dets_per_image = [1, 10, max_dets_per_image or 100]
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        converted = f"{dataset_name}_coco_format.json"
        path = getattr(self._metadata, "json_file", None)
        if path is None or os.path.basename(path) == converted:
            if output_dir is None:
                raise ValueError(
                    f"data set {dataset_name!r} is not in COCO's format: expected an output_dir to "
                    "convert it to"
                )
            path = os.path.join(output_dir, converted)
            # Always: what is there may be of other data.
            convert_to_coco_json(dataset_name, path, allow_cached=False)
            vars(self._metadata).pop("json_file", None)  # of an evaluator with another folder
            self._metadata.json_file = path
        # Processes that give their detections to the first one need no ground truth.
        is_evaluating = comm.is_main_process() or not distributed
        if is_evaluating:
            self._file = read_annotations(path)
            if used is not None and self._file.has_annotations:
                self._leave_out(dataset_name, used)
        self._max_detections = max_detections = int(detections_per_image)
        if max_dets_per_image is None and max_detections > MAX_DETECTIONS:
            message = (
                f"AP is that of the {MAX_DETECTIONS} best detections of an image and class, as "
                f"COCO's; as TEST.DETECTIONS_PER_IMAGE is {max_detections}, "
                f"AP-maxDets{max_detections} is that of so many"
            )
            log_first_n(logging.WARNING, message, key="message", name=__name__)
        if is_evaluating:
            self._coco_api = self._file.api()
            _complete_keypoints(self._coco_api.dataset.get("annotations", ()))
            self._do_evaluation = self._file.has_annotations
        self._clear()

    def _leave_out(self, name: str, used: Sequence[dict]) -> None:
        whole, self._file = self._file, used_part(self._file, used)
        parts = [
            f"{len(whole.content[part]) - len(self._file.content[part])} of the "
            f"{len(whole.content[part])} {part}"
            for part in ("images", "annotations")
            if len(self._file.content[part]) < len(whole.content[part])
        ]
        if parts:
            logger.warning(
                f"{name}: AP and all other measures are without {' and '.join(parts)}, which "
                "DATASETS.SKIP_UNREADABLE and DATASETS.SKIP_BAD_ANNOTATIONS leave out"
            )

    def _clear(self) -> None:
        self._image_correlations: list[float] = []
        self._gaps: list[tuple[float, int]] = []  # sum and number, by image
        self._bounds: dict[str, list[dict]] = {bound: [] for bound in BOUNDS}
        self._measured: dict[str, Results] = {}

    @property
    def measured(self) -> dict[str, Results]:
        """What the last evaluation measured: IoU type -> results; on the main process only."""
        return self._measured

    def reset(self):
        super().reset()
        self._clear()

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            if "positives" in output:
                positives = {
                    name: value.cpu().numpy() for name, value in output["positives"].items()
                }
                scores, ious = positives["scores"], positives["ious"]
                rho = rank_correlation(scores, ious)
                if rho is not None:
                    self._image_correlations.append(rho)
                self._gaps.append((inconsistency(scores, ious)[0], len(scores)))
            for bound in BOUNDS:
                if f"instances_{bound}" in output:
                    instances = output[f"instances_{bound}"].to(self._cpu_device)
                    self._bounds[bound] += instances_to_coco_json(instances, image["image_id"])

    def evaluate(self, img_ids=None):
        correlations, gaps, bounds = self._image_correlations, self._gaps, self._bounds
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((correlations, gaps, bounds), dst=0)
            if comm.is_main_process():
                correlations = list(itertools.chain(*(part[0] for part in gathered)))
                gaps = list(itertools.chain(*(part[1] for part in gathered)))
                bounds = {
                    bound: list(itertools.chain(*(part[2][bound] for part in gathered)))
                    for bound in BOUNDS
                }
        self._measured = {}
        results = super().evaluate(img_ids=img_ids)
        if not results:  # not the main process
            return results
        if results.get("bbox"):
            if correlations:
                results["bbox"]["beta_img"] = 100 * float(np.mean(correlations))
                results["bbox"]["beta_img-images"] = len(correlations)
            number = sum(count for _, count in gaps)
            if number:
                results["bbox"]["AIC"] = sum(gap for gap, _ in gaps)
                results["bbox"]["AIC-mean"] = 100 * results["bbox"]["AIC"] / number
            for bound, detections in bounds.items():
                if detections:
                    measures = self._measure(self._with_dataset_ids(detections), "bbox", img_ids)
                    for key in ("AP", "AP50", "AP75"):
                        results["bbox"][f"{key}_img_{bound}"] = measures.measures[key]
        if self._output_dir and self._measured:
            content = {iou_type: result.as_dict() for iou_type, result in self._measured.items()}
            with atomic_write(os.path.join(self._output_dir, "measures.json")) as file:
                json.dump(content, file, indent=1, allow_nan=False)
        return results

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)
        number = self._max_detections
        if self._max_dets_per_image[-1] == MAX_DETECTIONS < number:
            results[f"AP-maxDets{number}"] = _average_precision(coco_eval, iou_type, number)
        if iou_type == "keypoints":
            return results
        if coco_eval is None:
            # Without detections there is nothing to compare, and masks are not looked at.
            measured = self._measure([], "bbox", None)
        else:
            detections = coco_eval.cocoDt.dataset["annotations"]
            measured = self._measure(detections, iou_type, coco_eval.params.imgIds)
        self._measured[iou_type] = measured
        # What Detectron2 reports stays as it is.
        return {**results, **{k: v for k, v in measured.measures.items() if k not in results}}

    def _measure(
        self, detections: list[dict], iou_type: str, image_ids: Collection | None
    ) -> Results:
        """Measures of detections with the ids of the annotation file."""
        if image_ids is not None:
            chosen = set(image_ids)
            detections = [row for row in detections if row["image_id"] in chosen]
        ground_truth = self._ground_truth(iou_type, image_ids)
        # A diverged model's boxes are no reason to stop: pycocotools takes them for misses too.
        return measure(
            ground_truth,
            detections_from_coco(detections, ground_truth, iou_type, check_values=False),
            iou_type=iou_type,
        )

    def _ground_truth(self, iou_type: str, image_ids: Collection | None) -> GroundTruth:
        """Of the whole file, made once; or of some of its images."""
        content = self._file.content
        if image_ids is not None:
            chosen = set(image_ids)
            part = {
                "images": [image for image in content["images"] if image["id"] in chosen],
                "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
                "categories": content["categories"],
            }
            if any(len(rows) < len(content[key]) for key, rows in part.items()):
                return ground_truth_from_coco(part, iou_type, source=self._file.path)
        return self._file.ground_truth(iou_type)

    def _with_dataset_ids(self, detections: list[dict]) -> list[dict]:
        """Category ids of the annotation file in place of the model's."""
        contiguous = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if contiguous is None:
            return detections
        dataset_ids = {value: key for key, value in contiguous.items()}
        return [{**d, "category_id": dataset_ids[d["category_id"]]} for d in detections]


def _complete_keypoints(annotations: Sequence[dict]) -> None:
    """Invisible ones for objects without, and how many are visible, which pycocotools asks for."""
    number = max((len(row.get("keypoints") or ()) for row in annotations), default=0)
    for row in annotations if number else ():
        row["keypoints"] = row.get("keypoints") or [0] * number
        row["num_keypoints"] = sum(visibility > 0 for visibility in row["keypoints"][2::3])


def _average_precision(evaluated: COCOeval | None, iou_type: str, max_detections: int) -> float:
    """pycocotools' AP, in percent, of more detections of an image than COCO counts."""
    if evaluated is None:  # there are none
        return 0.0
    evaluation = COCOeval(evaluated.cocoGt, evaluated.cocoDt, iou_type)
    evaluation.params.imgIds = evaluated.params.imgIds
    evaluation.params.maxDets = [max_detections]
    if iou_type == "keypoints":
        evaluation.params.kpt_oks_sigmas = evaluated.params.kpt_oks_sigmas
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # of all areas
    precision = precision[precision > -1]
    return 100 * float(precision.mean()) if precision.size else math.nan
