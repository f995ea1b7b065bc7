"""What becomes of the size of an image on its way to the model, and whether anything is left."""

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from .augmentation import fixed_size

Size = tuple[int, int]


class Step(NamedTuple):
    """What is done to images, as far as sizes go.

    Attributes:
        words: what is done, by which key.
        sizes: from a size (height, width) to the extreme ones of those that may come of it.
        mirrors: whether Detectron2 mirrors what comes of it, which it cannot with a single pixel.
    """

    words: str
    sizes: Callable[[Size], Iterable[Size]]
    mirrors: bool = False


def ways(cfg: CfgNode, is_train: bool) -> list[list[Step]]:
    """The ways that images may go to the model.

    Args:
        cfg: the config.
        is_train: whether those of training, or those of tests; with ``TEST.AUG`` also its views.
    """
    split = "TRAIN" if is_train else "TEST"
    longest = cfg.INPUT[f"MAX_SIZE_{split}"]
    shortest = cfg.INPUT.MIN_SIZE_TRAIN if is_train else [cfg.INPUT.MIN_SIZE_TEST]
    resized = [_resize(f"resized to at most {longest} pixels", s, longest) for s in shortest]
    fixed = fixed_size(cfg, is_train)
    if fixed:
        resized = [Step("resized to INPUT.FIXED_SIZE", lambda size: [fixed])]
    if is_train:
        return [[*before, step] for before in _crops(cfg) for step in resized]
    found = [[step] for step in resized]
    views = cfg.TEST.AUG
    for shortest_edge in views.MIN_SIZES if views.ENABLED else ():
        view = _resize("resized by TEST.AUG", shortest_edge, views.MAX_SIZE)
        found += [[step, view._replace(mirrors=views.FLIP)] for step in resized]
    return found


def nothing_left(size: Size, steps: Sequence[Step]) -> str:
    """How an image can come to too few pixels, in words; an empty text where it cannot.

    Args:
        size: of the image, (height, width), at least one pixel each.
        steps: one of :func:`ways`.
    """
    if not steps:
        return ""
    step, *rest = steps
    for new in step.sizes(size):
        if min(new) < 1:
            return f"{step.words}, has a side of no pixel"
        if step.mirrors and max(new) == 1:
            return f"{step.words}, is a single pixel, which Detectron2 cannot mirror"
        if found := nothing_left(new, rest):
            return f"{step.words} to {new[1]} x {new[0]}, {found}"
    return ""


def _resize(words: str, shortest: int, longest: int = sys.maxsize) -> Step:
    def sizes(size: Size) -> Iterable[Size]:
        return [T.ResizeShortestEdge.get_output_shape(*size, shortest, longest)]

    return Step(words, sizes if shortest else lambda size: [size])


def _crops(cfg: CfgNode) -> list[list[Step]]:
    """What may come before training's resizing."""
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return [[]]
    step = Step("cropped by INPUT.CROP", lambda size: _cropped(crop.TYPE, crop.SIZE, size))
    before = [_resize("resized before INPUT.CROP", s) for s in crop.get("MIN_SIZE_BEFORE", ())]
    cropped = [[first, step] for first in before] or [[step]]
    return [*cropped, []] if crop.get("PROBABILITY", 1.0) < 1 else cropped


def _cropped(kind: str, crop_size: Sequence[float], size: Size) -> Iterable[Size]:
    if kind == "absolute_range":
        return itertools.product(*({min(side, most) for most in crop_size} for side in size))
    least = T.RandomCrop(kind.removesuffix("_range"), crop_size).get_crop_size(size)
    if not kind.endswith("_range"):
        return [least]
    return itertools.product(*({low, high} for low, high in zip(least, size, strict=True)))
