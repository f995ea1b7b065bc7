"""Keypoints: their names, which of them change places when an image is mirrored, their values."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from corrdet.coco import AnnotationError
from corrdet.coco.rules import is_number
from corrdet.errors import ConfigError

logger = logging.getLogger(__name__)

COCO_KEYPOINTS = 17  # of a person; pycocotools has the sigmas of these
_SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))


def put_keypoints(name: str, categories: Sequence[dict]) -> None:
    """Put the keypoints that a file's categories name into a data set's metadata.

    Names that differ in "left" and "right" change places in mirrored images. Nothing is put where
    the metadata have names already, or where categories have different ones.
    """
    metadata = MetadataCatalog.get(name)
    named = [row["keypoints"] for row in categories if row.get("keypoints")]
    is_one = bool(named) and all(names == named[0] for names in named)
    if is_one and isinstance(named[0], list) and metadata.get("keypoint_names") is None:
        metadata.keypoint_names = list(map(str, named[0]))
        pairs = _pairs_of(metadata.keypoint_names)
        if metadata.get("keypoint_flip_map") is None and (pairs or len(named[0]) == 1):
            metadata.keypoint_flip_map = list(pairs.items())
            listed = ", ".join(f"{left} and {right}" for left, right in pairs.items())
            logger.info(f"{name}: keypoints that change places in mirrored images: {listed}")


def flip_indices(cfg: CfgNode) -> list[int]:
    """Of each keypoint the one that takes its place when an image is mirrored.

    By the metadata of the first of ``DATASETS.TRAIN``: ``keypoint_flip_map``, or without it those
    of ``keypoint_names`` that differ in "left" and "right".

    Raises:
        AnnotationError: the keypoints have no names, not as many as the model, or a map of others.
        ConfigError: images are mirrored, and nothing says which keypoints change places.
    """
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    leader = cfg.DATASETS.TRAIN[0]
    metadata = MetadataCatalog.get(leader)
    names = metadata.get("keypoint_names")
    if names is None:
        raise AnnotationError(
            f"data set {leader!r}: MODEL.KEYPOINT_ON needs the names of its keypoints: expected "
            "'keypoints' of the category in the annotation file, or keypoint_names in the metadata"
        )
    _check_names(cfg, leader, names)
    given = metadata.get("keypoint_flip_map")
    pairs = _pairs_of(names) if given is None else _checked_map(leader, names, given)
    if given is None and not pairs and number > 1 and cfg.INPUT.RANDOM_FLIP == "horizontal":
        raise ConfigError(
            f"data set {leader!r}: no keypoint is the left or right one of another by its name "
            f"({', '.join(names)}): expected INPUT.RANDOM_FLIP none, or the pairs that change "
            "places when an image is mirrored as keypoint_flip_map in the metadata, [] for none"
        )
    swapped = {**pairs, **{right: left for left, right in pairs.items()}}
    return [names.index(swapped.get(name, name)) for name in names]


def check_keypoints(cfg: CfgNode, name: str) -> None:
    """Compare the names of a loaded data set's keypoints with the model and the training set.

    Raises:
        AnnotationError: there are not as many, or others than in the first of ``DATASETS.TRAIN``.
    """
    names = MetadataCatalog.get(name).get("keypoint_names")
    if names is None:  # which only training needs
        return
    _check_names(cfg, name, names)
    leader = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else name
    wanted = MetadataCatalog.get(leader).get("keypoint_names")
    if wanted is not None and list(names) != list(wanted):
        raise AnnotationError(
            f"data set {name!r}: expected the keypoints of {leader!r}, in their order "
            f"({', '.join(wanted)}), got {', '.join(names)}"
        )


def check_keypoint_keys(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: ``TEST.KEYPOINT_OKS_SIGMAS`` are not those of the keypoints.
    """
    sigmas, number = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    key = "TEST.KEYPOINT_OKS_SIGMAS"
    if not all(is_number(sigma) and 0 < sigma < math.inf for sigma in sigmas):
        raise ConfigError(f"{key} must be positive numbers, got {sigmas!r}")
    if cfg.MODEL.KEYPOINT_ON and (len(sigmas) or COCO_KEYPOINTS) != number:
        has = f"{len(sigmas)} numbers" if sigmas else f"none, which are COCO's {COCO_KEYPOINTS}"
        raise ConfigError(
            f"{key} are {has}, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {number}: expected a "
            "standard deviation of each keypoint, as a share of the object's size"
        )


def keypoint_problem(values: Any, number: int) -> str:
    """What is wrong with the keypoints of an object, "" for nothing; it may have none."""
    if values is None or (isinstance(values, list | tuple) and not values):
        return ""
    try:
        flat = [float(value) for value in values]
    except (TypeError, ValueError):
        return "the keypoints are not numbers"
    if len(flat) != 3 * number:
        return f"expected x, y and visibility of {number} keypoints, got {len(flat)} numbers"
    if not all(map(math.isfinite, flat)):
        return "a keypoint is not finite"
    if not set(flat[2::3]) <= {0.0, 1.0, 2.0}:
        return "the visibility of a keypoint is none of 0, 1 and 2"
    return ""


def _check_names(cfg: CfgNode, name: str, names: Sequence[str]) -> None:
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if len(names) != number or len(set(names)) < number:
        raise AnnotationError(
            f"data set {name!r} has the {len(names)} keypoints {', '.join(map(str, names))}, but "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {number}: expected so many different names"
        )


def _pairs_of(names: Sequence[str]) -> dict[str, str]:
    """Left name -> right name."""
    pairs = {}
    for left, right in _SIDES:
        for name in names:
            other = name.replace(left, right)
            if other != name and other in names:
                pairs[name] = other
    return pairs


def _checked_map(name: str, names: Sequence[str], given: Any) -> dict[str, str]:
    try:
        pairs = dict(given)
    except (TypeError, ValueError):
        pairs = {"": ""}
    members = [*pairs, *pairs.values()]
    swapped = {**pairs, **{right: left for left, right in pairs.items()}}
    if not set(members) <= set(names) or any(swapped[swapped[m]] != m for m in members):
        raise AnnotationError(
            f"data set {name!r}: expected keypoint_flip_map to be pairs of keypoint_names "
            f"({', '.join(names)}), each in one pair, got {given!r}"
        )
    return pairs
