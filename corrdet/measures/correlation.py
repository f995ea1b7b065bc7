"""How well scores agree with IoUs: rank correlations, their bounds, and inconsistency."""

import numpy as np
from pycocotools.cocoeval import COCOeval

# scipy.stats takes longer to import than everything else here together: when first needed.


def rank_correlation(scores: np.ndarray, ious: np.ndarray) -> float | None:
    """Spearman's coefficient (thesis "Correlation Loss", Eq. 2.2), exact, ties by average rank.

    Args:
        scores: (n,).
        ious: (n,).

    Returns:
        value in [-1, 1], or None where it is not defined: fewer than two pairs, or one of the two
        constant.
    """
    scores, ious = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(scores), rankdata(ious))[0, 1])


def correlations(scores: np.ndarray, ious: np.ndarray) -> tuple[float, float, float]:
    """PCC, SCC and KCC ("Association loss" Table II, "AP loss revisited" Table 5).

    Args:
        scores: (n,).
        ious: (n,), of the detections with an IoU above 0.5.

    Returns:
        Pearson's, Spearman's and Kendall's coefficient (tau-b), in [-1, 1]; NaN where they are not
        defined: fewer than two pairs, or one of the two constant.
    """
    scores, ious = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    spearman = rank_correlation(scores, ious)
    if spearman is None:
        return (float("nan"),) * 3
    from scipy.stats import kendalltau

    pearson = float(np.corrcoef(scores, ious)[0, 1])
    return pearson, spearman, float(kendalltau(scores, ious).statistic)


def inconsistency(scores: np.ndarray, ious: np.ndarray) -> tuple[float, float]:
    """Average Inconsistency Coefficient, AIC ("HarmonicDet", Eq. 14), and what its name says.

    Args:
        scores: (n,) of the positives, for their ground-truth class.
        ious: (n,).

    Returns:
        sum over the positives of abs(score - IoU), as the paper defines it, and their mean; the
        mean of none is NaN.
    """
    gaps = np.abs(np.asarray(scores, dtype=np.float64) - np.asarray(ious, dtype=np.float64))
    return float(gaps.sum()), float(gaps.mean()) if len(gaps) else float("nan")


def true_positives(coco_eval: COCOeval) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Scores and IoUs of a class's true positives, as COCO matches them at IoU 0.5.

    Args:
        coco_eval: after ``evaluate()``, with 0.5 among its IoU thresholds; all areas and the
            largest number of detections are used.

    Returns:
        category id -> scores (n,) and IoUs (n,) with the matched ground truth, for every category;
        matches with ignored (crowd) ground truth do not count.

    Raises:
        ValueError: 0.5 is not among the thresholds.
    """
    parameters = coco_eval.params
    at_half = np.flatnonzero(np.isclose(parameters.iouThrs, 0.5))
    if len(at_half) == 0:
        raise ValueError(f"expected an IoU threshold of 0.5, got {parameters.iouThrs}")
    pairs: dict[int, tuple[list[float], list[float]]]
    pairs = {category: ([], []) for category in parameters.catIds}
    for image in coco_eval.evalImgs:
        if image is None or image["aRng"] != parameters.areaRng[0]:
            continue
        matches = image["dtMatches"][at_half[0]]
        is_true = (matches > 0) & ~image["dtIgnore"][at_half[0]].astype(bool)
        if not is_true.any():
            continue
        key = image["image_id"], image["category_id"]
        # Rows of the IoU matrix are the detections in order of score, as here; columns are the
        # ground truths in the order of the annotation file, which matching reorders.
        column = {gt["id"]: index for index, gt in enumerate(coco_eval._gts[key])}
        scores, ious = pairs[image["category_id"]]
        for row in np.flatnonzero(is_true):
            scores.append(image["dtScores"][row])
            ious.append(coco_eval.ious[key][row, column[matches[row]]])
    return {category: (np.array(s), np.array(i)) for category, (s, i) in pairs.items()}
