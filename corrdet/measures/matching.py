"""Matching of detections with ground truth, with the result of pycocotools, for all images at once.

COCO matches greedily: detections of an image and class, best first, take the free ground truth with
the largest IoU. Only detections with an IoU of at least the lowest threshold can match at all, so
the first such detections of all images are matched together, then the second ones, and so on, for
all thresholds and areas at once.
"""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from corrdet.coco import Detections, GroundTruth

# As in pycocotools.cocoeval.Params, bit for bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
MAX_DETECTIONS = 100
# Of an image, over all classes: as in lvis.LVISEval.
MAX_LVIS_DETECTIONS = 300
# Pairs whose IoUs are computed together; bounds the memory.
PAIRS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Matches:
    """The D evaluated detections, by category, and within one best first, as COCO accumulates them.

    Of N detections these are the 100 best of each image and category, or as many as were asked for;
    of federated annotations the 300 best of each image, of the categories that were looked for in
    it. Ties are in the order of the images' ids, then of the file. T are the IoU thresholds
    0.5:0.05:0.95, A the areas all, small, medium and large, C the categories.

    Attributes:
        detections: (D,) rows of ``Detections``.
        images: (D,) as in ``Detections``.
        categories: (D,) ascending.
        scores: (D,) descending within a category.
        ranks: (D,) position among the detections of image and category, from 0.
        best_ious: (D,) largest IoU with a ground truth of the image and category that is not a
            crowd, taken or free; 0 without any.
        ious: (D,) IoU with the ground truth matched at threshold 0.5, all areas; 0 without.
        matched: (T, D) row of ``GroundTruth`` matched, over all areas, -1 without.
        true_positives: (A, T, D) matched with a ground truth that counts.
        ignored: (A, T, D) counts neither as true nor as false positive: matched with a crowd or
            outside of the range of areas.
        num_gt: (A, C) number of ground truths that count.
    """

    detections: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    best_ious: np.ndarray
    ious: np.ndarray
    matched: np.ndarray
    true_positives: np.ndarray
    ignored: np.ndarray
    num_gt: np.ndarray

    def rows(self, category: int) -> slice:
        """Where the detections of a category are."""
        start, stop = np.searchsorted(self.categories, [category, category + 1])
        return slice(int(start), int(stop))


def default_max_detections(ground_truth: GroundTruth) -> int:
    """How many of the best detections count: of an image and category, or of an image by LVIS."""
    return MAX_DETECTIONS if ground_truth.federated is None else MAX_LVIS_DETECTIONS


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    max_detections: int | None = None,
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Match detections with ground truth as pycocotools does, for all areas and thresholds.

    Of federated annotations as lvis does: of classes that are not known to be in the image or
    absent, detections do not count; of classes that are not exhaustively annotated, those that are
    not matched are ignored.

    One difference: pycocotools takes a match with an annotation of id 0 for no match; here ids have
    no meaning.

    Args:
        ground_truth: G objects.
        detections: N detections; masks are compared where both have masks.
        max_detections: of an image and category, 100 if not given; of federated annotations of an
            image, 300 if not given.
        iou_thresholds: (T,) ascending, above 0.
    """
    limit = default_max_detections(ground_truth) if max_detections is None else max_detections
    gt = ground_truth
    num_images, num_categories = len(gt.image_ids), len(gt.category_ids)
    # Groups, one for an image and category, in the order category, image.
    gt_groups = gt.categories * num_images + gt.images
    gt_order = np.argsort(gt_groups, kind="stable")
    gt_groups = gt_groups[gt_order]
    groups = detections.categories * num_images + detections.images
    order = np.lexsort((-detections.scores, groups))  # stable: ties stay as in the file
    groups = groups[order]
    ranks = np.arange(len(order)) - np.searchsorted(groups, groups)
    if gt.federated is None:
        is_evaluated = ranks < limit
    else:
        looked_for = np.union1d(gt_groups, gt.federated.absent)
        is_evaluated = np.isin(groups, looked_for) & _are_best(detections, limit)[order]
        is_evaluated &= detections.areas[order] > 0
    order, groups, ranks = order[is_evaluated], groups[is_evaluated], ranks[is_evaluated]

    # In group order: pairs that may match, and each detection's best IoU.
    pair_dt, pair_gt, pair_ious, best_ious = _overlapping_pairs(
        gt, gt_order, gt_groups, detections, order, groups, iou_thresholds[0]
    )
    scores, categories = detections.scores[order], detections.categories[order]
    ranking = np.lexsort((-scores, categories))
    targets = np.empty_like(ranking)
    targets[ranking] = np.arange(len(ranking))

    low, high = np.array(list(AREA_RANGES.values())).T[:, :, None]
    gt_ignored = gt.is_crowd | (gt.areas < low) | (gt.areas > high)  # (A, G)
    is_true, ignored, matched, ious = _match_greedily(
        pair_dt,
        pair_gt,
        pair_ious,
        groups,
        targets,
        gt_ignored[:, gt_order],
        gt.is_crowd[gt_order],
        iou_thresholds,
    )
    areas = detections.areas[order][ranking]
    is_outside = (areas < low) | (areas > high)  # (A, D)
    if gt.federated is not None:
        is_outside |= np.isin(groups[ranking], gt.federated.incomplete)
    is_unmatched = ~(is_true | ignored)
    ignored |= is_unmatched & is_outside[:, None]
    is_matched = matched >= 0
    matched[is_matched] = gt_order[matched[is_matched]]
    return Matches(
        detections=order[ranking],
        images=detections.images[order][ranking],
        categories=categories[ranking],
        scores=scores[ranking],
        ranks=ranks[ranking],
        best_ious=best_ious[ranking],
        ious=ious,
        matched=matched,
        true_positives=is_true,
        ignored=ignored,
        num_gt=np.stack(
            [np.bincount(gt.categories[~row], minlength=num_categories) for row in gt_ignored]
        ),
    )


def _are_best(detections: Detections, limit: int) -> np.ndarray:
    """(N,) whether a detection is among the best of its image, over all classes."""
    order = np.lexsort((-detections.scores, detections.images))
    images = detections.images[order]
    are_best = np.empty(len(order), bool)
    are_best[order] = np.arange(len(order)) - np.searchsorted(images, images) < limit
    return are_best


def box_ious(boxes: np.ndarray, gt_boxes: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """IoUs of pairs of boxes, rounded as pycocotools.mask.iou rounds them.

    Args:
        boxes: (n, 4) XYWH.
        gt_boxes: (n, 4) XYWH.
        is_crowd: (n,) bool: there, the area of the detection takes the place of the union's.

    Returns:
        (n,); 0 for boxes without a common area.
    """
    x1, y1, width1, height1 = boxes.T
    x2, y2, width2, height2 = gt_boxes.T
    width = np.minimum(x1 + width1, x2 + width2) - np.maximum(x1, x2)
    height = np.minimum(y1 + height1, y2 + height2) - np.maximum(y1, y2)
    overlaps = (width > 0) & (height > 0)
    intersection = np.where(overlaps, width * height, 0)
    area1 = width1 * height1
    union = np.where(is_crowd, area1, area1 + width2 * height2 - intersection)
    return np.divide(intersection, union, out=np.zeros(len(boxes)), where=overlaps)


class PairIous:
    """IoUs of any detections with any objects, of masks where both have masks."""

    def __init__(self, ground_truth: GroundTruth, detections: Detections):
        self._gt, self._detections = ground_truth, detections
        self._masks, self._gt_masks = detections.masks, ground_truth.masks

    def matrix(self, rows: np.ndarray, columns: np.ndarray, *, crowd: bool) -> np.ndarray:
        """(n, m) IoUs of n detections with m objects.

        Args:
            rows: n of ``Detections``.
            columns: m of ``GroundTruth``.
            crowd: the area of the detection takes the place of the union's.
        """
        shape = len(rows), len(columns)
        if 0 in shape:
            return np.zeros(shape)
        if self._masks is None or self._gt_masks is None:
            pairs = np.repeat(rows, shape[1]), np.tile(columns, shape[0])
            boxes, gt_boxes = self._detections.boxes[pairs[0]], self._gt.boxes[pairs[1]]
            return box_ious(boxes, gt_boxes, np.full(len(boxes), crowd)).reshape(shape)
        return np.asarray(
            mask_utils.iou(
                [self._masks[row] for row in rows],
                [self._gt_masks[column] for column in columns],
                [int(crowd)] * shape[1],
            )
        ).reshape(shape)


def _overlapping_pairs(gt, gt_order, gt_groups, detections, order, groups, least):
    """Pairs of the same group with an IoU of at least the lowest threshold, ``least``.

    Returns:
        index of the detection in ``order`` and of the ground truth in ``gt_order``, and the IoU,
        (n,) each, detections ascending; and the best IoU (D,) of each detection.
    """
    start = np.searchsorted(gt_groups, groups)
    counts = np.searchsorted(gt_groups, groups, side="right") - start
    ends = np.cumsum(counts)
    best_ious = np.zeros(len(order))
    found = []
    first = 0
    while first < len(order):
        done = ends[first - 1] if first else 0
        # At least one group, as masks are compared group by group.
        last = np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")
        last = np.searchsorted(groups, groups[max(last - 1, first)], side="right")
        chunk = slice(first, last)
        pair_dt = np.repeat(np.arange(first, last), counts[chunk])
        before = ends[chunk] - counts[chunk] - done
        pair_gt = start[pair_dt] + np.arange(len(pair_dt)) - np.repeat(before, counts[chunk])
        rows, columns = order[pair_dt], gt_order[pair_gt]
        is_crowd = gt.is_crowd[columns]
        if gt.masks is not None and detections.masks is not None:
            ious = _mask_ious(gt, detections, rows, columns, groups[pair_dt])
        else:
            ious = box_ious(detections.boxes[rows], gt.boxes[columns], is_crowd)
        if len(pair_dt):
            firsts = np.flatnonzero(np.diff(pair_dt, prepend=-1))
            best_ious[pair_dt[firsts]] = np.maximum.reduceat(np.where(is_crowd, 0, ious), firsts)
        keep = ious >= least
        found.append((pair_dt[keep], pair_gt[keep], ious[keep]))
        first = last
    if not found:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0), best_ious
    pair_dt, pair_gt, ious = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pair_dt, pair_gt, ious, best_ious


def _mask_ious(gt, detections, rows, columns, groups):
    """IoUs of pairs of masks that are all pairs of their groups, detection by detection."""
    ious = np.empty(len(rows))
    bounds = np.flatnonzero(np.diff(groups, prepend=-1, append=-1))
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        first_row = rows[start]
        num_gt = int(np.searchsorted(rows[start:stop] != first_row, True))
        group_columns = columns[start : start + num_gt]
        matrix = mask_utils.iou(
            [detections.masks[row] for row in rows[start:stop:num_gt]],
            [gt.masks[column] for column in group_columns],
            gt.is_crowd[group_columns].astype(np.uint8).tolist(),
        )
        ious[start:stop] = matrix.ravel()
    return ious


def _match_greedily(
    pair_dt, pair_gt, pair_ious, groups, targets, gt_ignored, is_crowd, iou_thresholds
):
    """pycocotools' COCOeval.evaluateImg, for all images and categories.

    Args:
        pair_dt: (n,) detections, ascending, best first within a group.
        pair_gt: (n,) ground truths.
        pair_ious: (n,).
        groups: (D,) of the detections.
        targets: (D,) where the results of the detections go.
        gt_ignored: (A, G).
        is_crowd: (G,).
        iou_thresholds: (T,).

    Returns:
        matched with a ground truth that counts (A, T, D), matched with an ignored one (A, T, D),
        ground truth matched over all areas or -1 (T, D), its IoU at the lowest threshold (D,).
    """
    num_areas, num_gt = gt_ignored.shape
    thresholds = np.minimum(iou_thresholds, 1 - 1e-10)[:, None]
    shape = num_areas, len(thresholds), len(groups)
    is_true, is_ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    matched = np.full(shape[1:], -1, np.int32)
    ious = np.zeros(len(groups))

    # The last that is free is then the best: of equal IoUs the later in the file, as there.
    order = np.lexsort((pair_gt, pair_ious, pair_dt))
    pair_dt, pair_gt, pair_ious = pair_dt[order], pair_gt[order], pair_ious[order]
    candidates, first_pair = np.unique(pair_dt, return_index=True)
    rounds = np.arange(len(candidates)) - np.searchsorted(groups[candidates], groups[candidates])
    pair_rounds = np.repeat(rounds, np.diff(first_pair, append=len(pair_dt)))
    by_round = np.argsort(pair_rounds, kind="stable")
    bounds = np.searchsorted(pair_rounds[by_round], np.arange(rounds.max(initial=-1) + 2))
    pair_dt, pair_gt, pair_ious = pair_dt[by_round], pair_gt[by_round], pair_ious[by_round]

    taken = np.zeros((num_areas, len(thresholds), num_gt), bool)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        dt, gt, iou = pair_dt[start:stop], pair_gt[start:stop], pair_ious[start:stop]
        first = np.flatnonzero(np.diff(dt, prepend=-1))
        is_free = (iou >= thresholds) & (~taken[:, :, gt] | is_crowd[gt])  # (A, T, n)
        # Ground truth that counts goes before any that does not.
        preference = np.arange(len(dt)) + len(dt) * ~gt_ignored[:, None, gt]
        best = np.maximum.reduceat(np.where(is_free, preference, -1), first, axis=2)
        area, threshold, row = np.unravel_index(np.flatnonzero(best >= 0), best.shape)
        best = best[area, threshold, row]
        pair = best % len(dt)
        target = targets[dt[pair]]
        taken[area, threshold, gt[pair]] = True
        is_true[area, threshold, target] = best >= len(dt)
        is_ignored[area, threshold, target] = best < len(dt)
        is_all = area == 0
        matched[threshold[is_all], target[is_all]] = gt[pair[is_all]]
        lowest = is_all & (threshold == 0)
        ious[target[lowest]] = iou[pair[lowest]]
    return is_true, is_ignored, matched, ious
