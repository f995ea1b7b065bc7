"""Polygons as arrays, and what is asked of all polygons of a file at once.

A list of numbers takes four times the memory of an array, and a call for each of a million polygons
a minute. Polygons of at least three points, all numbers, therefore become arrays while a file is
parsed; whatever else stands in a file stays as it is, for messages.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .rules import has_corners

_NUMBERS = frozenset((float, int))


def pack(row: dict) -> dict:
    """For ``json.load(..., object_hook=pack)``: puts arrays in place of the polygons of a row.

    An array is of float64, x1, y1, x2, y2, ...; its numbers may be infinite or NaN.
    """
    segmentation = row.get("segmentation")
    if type(segmentation) is list:
        for index, polygon in enumerate(segmentation):
            if type(polygon) is list and has_corners(polygon):
                if _NUMBERS.issuperset(map(type, polygon)):
                    try:
                        segmentation[index] = np.array(polygon, dtype=np.float64)
                    except OverflowError:  # an integer that is no number in floating point
                        pass
    return row


def is_packed(segmentation: Any) -> bool:
    """Whether a mask is of polygons, at least one, that :func:`pack` has made arrays of."""
    if type(segmentation) is not list or not segmentation:
        return False
    for polygon in segmentation:
        if type(polygon) is not np.ndarray or polygon.dtype != np.float64:
            return False
    return True


class Outlines:
    """What is known of the m polygons of n masks, all at once.

    Attributes:
        masks: (m,) the mask of each polygon, in 0..n-1.
        low, high: (m, 2) the least and greatest x and y; NaN where a coordinate is.
        areas: (m,) of what a polygon encloses; parts that it goes around the other way cancel.
        lengths: (m,) pixels along the outline, each step the larger of those in x and y.
    """

    def __init__(self, masks: Sequence[Sequence[np.ndarray]]) -> None:
        """
        Args:
            masks: n packed ones, see :func:`is_packed`; at least one.
        """
        counts = np.array([len(mask) for mask in masks])
        self.masks = np.repeat(np.arange(len(masks)), counts)
        self._firsts = np.cumsum(counts) - counts
        polygons = [polygon for mask in masks for polygon in mask]
        sizes = np.array([polygon.size // 2 for polygon in polygons])
        corners = np.concatenate(polygons).reshape(-1, 2)
        starts = np.cumsum(sizes) - sizes
        following = np.arange(1, len(corners) + 1)
        following[starts + sizes - 1] = starts
        then = corners[following]
        with np.errstate(over="ignore", invalid="ignore"):
            self.low = np.minimum.reduceat(corners, starts)
            self.high = np.maximum.reduceat(corners, starts)
            crossed = corners[:, 0] * then[:, 1] - then[:, 0] * corners[:, 1]
            self.areas = np.abs(np.add.reduceat(crossed, starts)) / 2
            self.lengths = np.add.reduceat(np.abs(then - corners).max(axis=1), starts)

    def any(self, polygons: np.ndarray) -> np.ndarray:
        """(n,) whether one of a mask's polygons is one of (m,) ``polygons``."""
        return np.logical_or.reduceat(polygons, self._firsts)

    def all(self, polygons: np.ndarray) -> np.ndarray:
        """(n,) whether all are."""
        return np.logical_and.reduceat(polygons, self._firsts)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(n,) the sum over the polygons of a mask."""
        return np.add.reduceat(values, self._firsts)
