"""COCO evaluation with the correlation measures of the thesis "Correlation Loss"."""

import itertools

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from .correlation import rank_correlation, true_positives


class CorrelationEvaluator(COCOEvaluator):
    """AP by pycocotools, with beta_cls and beta_img beside it, in percent.

    ``beta_cls`` (Eq. 3.2): Spearman's correlation of score and IoU over the true positives of a
    class, averaged over classes. ``beta_img`` (Eq. 3.1): the same over the positives of an image
    before post-processing, averaged over images; only with models that output ``positives``.
    Classes and images where it is not defined are left out; ``beta_cls-classes`` and
    ``beta_img-images`` say how many were averaged.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, **kwargs):
        """
        Args:
            dataset_name: in COCO format, or convertible by Detectron2.
            output_dir: for the detections in COCO's results format.
            kwargs: as COCOEvaluator's.
        """
        # The official implementation; Detectron2's fast one is approximate, and compiled.
        super().__init__(dataset_name, output_dir=output_dir, use_fast_impl=False, **kwargs)
        self._image_correlations: list[float] = []

    def reset(self):
        super().reset()
        self._image_correlations = []

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        for output in outputs:
            if "positives" in output:
                positives = {
                    name: value.cpu().numpy() for name, value in output["positives"].items()
                }
                rho = rank_correlation(positives["scores"], positives["ious"])
                if rho is not None:
                    self._image_correlations.append(rho)

    def evaluate(self, img_ids=None):
        correlations = self._image_correlations
        if self._distributed:
            comm.synchronize()
            correlations = list(itertools.chain(*comm.gather(correlations, dst=0)))
        results = super().evaluate(img_ids=img_ids)
        if results.get("bbox") and correlations:
            results["bbox"]["beta_img"] = 100 * float(np.mean(correlations))
            results["bbox"]["beta_img-images"] = len(correlations)
        return results

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)
        if iou_type == "keypoints":
            return results
        pairs = true_positives(coco_eval).values() if coco_eval is not None else ()
        defined = [rho for rho in itertools.starmap(rank_correlation, pairs) if rho is not None]
        results["beta_cls"] = 100 * float(np.mean(defined)) if defined else float("nan")
        results["beta_cls-classes"] = len(defined)
        return results
