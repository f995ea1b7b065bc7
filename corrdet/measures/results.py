"""All measures of a detector's results: one call, one record.

In percent, as Detectron2 prints; NaN where a measure is not defined.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from corrdet.coco import Detections, GroundTruth
from corrdet.coco.federated import FREQUENCIES

from .correlation import correlations, rank_correlation
from .matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    Matches,
    default_max_detections,
    match,
)
from .ranking import (
    LocalizationRecallPrecision,
    OptimalLRP,
    PrecisionCurves,
    average_recall,
    bound_order,
)

AT_THRESHOLDS = (50, 60, 70, 75, 80, 90)
# PCC, SCC and KCC are over the detections with a larger IoU.
MIN_CORRELATION_IOU = 0.5


@dataclass(frozen=True)
class Results:
    """What is known of a detector's results. T IoU thresholds, C categories, D detections.

    Attributes:
        name: of the results, for tables.
        iou_type: "bbox" or "segm".
        ground_truth: images, categories and objects.
        detections: as in the file; ``matches.detections`` are rows of these.
        matches: per evaluated detection: image, category, score, best IoU, and for each threshold
            the ground truth matched and whether it is a true positive.
        precision: (T, C, 101) interpolated, at ``ranking.RECALL_THRESHOLDS``, all areas, in 0..1.
        precision_upper: (T, C, 101) the same with each category's true positives in the order of
            their IoUs.
        precision_lower: (T, C, 101) and against it.
        measures: name -> value; counts are ``beta_cls-classes`` (categories averaged over) and
            ``correlated-detections`` (that PCC, SCC and KCC are over).
        per_class: name -> (C,) values; counts are ``ground_truths`` (no crowds), ``detections`` and
            ``true_positives`` (at IoU 0.5); ``oLRP_threshold`` is a score, in 0..1.
        lrp_thresholds: what oLRP is a minimum over: every detection's score, or 0:0.01:1 ("grid").
        max_detections: of an image and category that are evaluated; by LVIS' rules of an image.
    """

    name: str
    iou_type: str
    ground_truth: GroundTruth = field(repr=False)
    detections: Detections = field(repr=False)
    matches: Matches = field(repr=False)
    precision: np.ndarray = field(repr=False)
    precision_upper: np.ndarray = field(repr=False)
    precision_lower: np.ndarray = field(repr=False)
    measures: dict[str, float]
    per_class: dict[str, np.ndarray] = field(repr=False)
    lrp_thresholds: str = "scores"
    max_detections: int = MAX_DETECTIONS

    @property
    def boxes(self) -> np.ndarray:
        """(D, 4) XYWH of the evaluated detections."""
        return self.detections.boxes[self.matches.detections]

    def as_dict(self) -> dict:
        """Measures, and under ``per_class`` those of each class, for JSON: undefined is None."""
        names = unique_names(self.ground_truth)
        return {
            **{key: _defined(value) for key, value in self.measures.items()},
            "per_class": {
                name: {key: _defined(values[row].item()) for key, values in self.per_class.items()}
                for row, name in enumerate(names)
            },
        }

    @property
    def num_left_out(self) -> int:
        """Detections that are not evaluated, beyond the 100 best of an image and class say."""
        return len(self.detections.scores) - len(self.matches.scores)


def measure(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    iou_type: str = "bbox",
    name: str = "",
    lrp_thresholds: str = "scores",
    max_detections: int | None = None,
) -> Results:
    """Match detections with ground truth and compute every measure that the two files allow.

    Args:
        ground_truth: with masks for ``iou_type`` "segm".
        detections: with masks for ``iou_type`` "segm".
        iou_type: "bbox" or "segm", for the record.
        name: of the results, for the record.
        lrp_thresholds: "scores", or "grid" for oLRP as it was defined in 2018.
        max_detections: see :func:`match`.
    """
    if max_detections is None:
        max_detections = default_max_detections(ground_truth)
    matches = match(ground_truth, detections, max_detections)
    weights = np.ones(len(matches.scores))
    num_gt = matches.num_gt[0]
    precision = {
        area: _curves(matches, row).precision(weights, matches.num_gt[row])
        for row, area in enumerate(AREA_RANGES)
    }
    bounds = {}
    for bound in ("upper", "lower"):
        order = bound_order(
            matches.categories,
            matches.true_positives[0, 0],
            matches.ious,
            upper=bound == "upper",
        )
        bounds[bound] = _curves(matches, 0, order).precision(weights, num_gt)
    lrp = LocalizationRecallPrecision(matches, lrp_thresholds).optimum(weights, num_gt)

    recalls = _recalls(matches, max_detections, by_lvis=ground_truth.federated is not None)
    per_class = _class_measures(matches, precision, recalls, bounds, lrp)
    measures = {key: mean_of_defined(values) for key, values in per_class.items()}
    for key, is_of in frequency_groups(ground_truth).items():
        measures[key] = mean_of_defined(per_class["AP"][is_of])
    is_near = matches.best_ious > MIN_CORRELATION_IOU
    together, by_class = _near_correlations(matches, is_near)
    measures = {key: 100 * value for key, value in (measures | together).items()}
    per_class = {key: 100 * values for key, values in (per_class | by_class).items()}
    measures["beta_cls-classes"] = int(np.isfinite(per_class["beta_cls"]).sum())
    measures["correlated-detections"] = int(is_near.sum())
    per_class["oLRP_threshold"] = lrp.thresholds
    per_class["ground_truths"] = num_gt
    counted = matches.categories, matches.categories[matches.true_positives[0, 0]]
    for key, rows in zip(("detections", "true_positives"), counted, strict=True):
        per_class[key] = np.bincount(rows, minlength=len(num_gt))
    return Results(
        name=name,
        iou_type=iou_type,
        ground_truth=ground_truth,
        detections=detections,
        matches=matches,
        precision=precision["all"],
        precision_upper=bounds["upper"],
        precision_lower=bounds["lower"],
        measures=measures,
        per_class=per_class,
        lrp_thresholds=lrp_thresholds,
        max_detections=max_detections,
    )


def frequency_groups(ground_truth: GroundTruth) -> dict[str, np.ndarray]:
    """APr, APc and APf of LVIS -> (C,) which categories they are the mean of."""
    if ground_truth.federated is None or not any(ground_truth.federated.frequencies):
        return {}
    frequencies = np.array(ground_truth.federated.frequencies)
    return {f"AP{letter}": frequencies == letter for letter in FREQUENCIES}


def _recalls(matches: Matches, limit: int, *, by_lvis: bool) -> dict[str, np.ndarray]:
    """Name -> (T, C). LVIS has only that of all detections that it evaluates."""
    counts = [limit] if by_lvis else sorted({1, 10, limit})
    # Ranks are within a class, which by LVIS has no limit of its own.
    recalls = {f"AR{count}": average_recall(matches, "all", count) for count in counts}
    for area in ("small", "medium", "large"):
        recalls[f"AR{area[0]}"] = average_recall(matches, area, limit)
    return recalls


def _curves(matches: Matches, area: int, order: np.ndarray | None = None) -> PrecisionCurves:
    """Precision of an area's matches, of which ``order`` takes other places in the ranking."""
    is_true, ignored = matches.true_positives[area], matches.ignored[area]
    if order is not None:
        is_true, ignored = is_true[:, order], ignored[:, order]
    return PrecisionCurves(matches.categories, is_true, ignored, matches.num_gt.shape[1])


def _class_measures(
    matches: Matches,
    precision: Mapping[str, np.ndarray],
    recalls: Mapping[str, np.ndarray],
    bounds: Mapping[str, np.ndarray],
    lrp: OptimalLRP,
) -> dict[str, np.ndarray]:
    """Name -> (C,) in 0..1, of the measures whose mean over the classes is one of all."""
    sizes = "small", "medium", "large"
    values = {"AP": precision["all"].mean(axis=(0, 2))}
    for percent in AT_THRESHOLDS:
        values[f"AP{percent}"] = precision["all"][threshold_row(percent)].mean(axis=1)
    values |= {f"AP{area[0]}": precision[area].mean(axis=(0, 2)) for area in sizes}
    values |= {key: recall.mean(axis=0) for key, recall in recalls.items()}
    values |= {
        "oLRP": lrp.error,
        "oLRP_Loc": lrp.localization,
        "oLRP_FP": lrp.false_positives,
        "oLRP_FN": lrp.false_negatives,
        "beta_cls": class_correlations(matches),
    }
    for bound, curve in bounds.items():
        values[f"AP_{bound}"] = curve.mean(axis=(0, 2))
        values[f"AP75_{bound}"] = curve[threshold_row(75)].mean(axis=1)
    return values


def _near_correlations(
    matches: Matches, is_near: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """PCC, SCC and KCC of the detections near an object: of all together, and (C,) by class."""
    names = "PCC", "SCC", "KCC"
    together = correlations(matches.scores[is_near], matches.best_ious[is_near])
    by_class = []
    for category in range(matches.num_gt.shape[1]):
        rows = matches.rows(category)
        near = is_near[rows]
        by_class.append(correlations(matches.scores[rows][near], matches.best_ious[rows][near]))
    columns = np.array(by_class).reshape(-1, 3).T
    return dict(zip(names, together, strict=True)), dict(zip(names, columns, strict=True))


def class_correlations(matches: Matches) -> np.ndarray:
    """Spearman's correlation of score and IoU over the true positives (IoU >= 0.5) of each class.

    beta_cls ("Correlation Loss", Eq. 3.2) is their mean.

    Returns:
        (C,); NaN where it is not defined: fewer than two true positives, or one of score and IoU
        the same for all.
    """
    values = []
    for category in range(matches.num_gt.shape[1]):
        rows = matches.rows(category)
        is_true = matches.true_positives[0, 0, rows]
        rho = rank_correlation(matches.scores[rows][is_true], matches.ious[rows][is_true])
        values.append(np.nan if rho is None else rho)
    return np.array(values)


def unique_names(ground_truth: GroundTruth) -> list[str]:
    """Names of the categories, with the id where several have the same: each is another text."""
    names = ground_truth.category_names
    counts = Counter(names)
    unique: dict[str, None] = {}
    for name, category in zip(names, ground_truth.category_ids, strict=True):
        label = name
        # Another class may be called what this one becomes.
        while counts[label] > (label == name) or label in unique:
            label = f"{label} ({category})"
        unique[label] = None
    return list(unique)


def threshold_row(percent: int) -> int:
    """Place of an IoU threshold, in percent, among ``IOU_THRESHOLDS``."""
    return int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, percent / 100))[0])


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean_of_defined(values: np.ndarray) -> float:
    """Mean over the categories where it is defined; NaN where it is for none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
