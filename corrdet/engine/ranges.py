"""What Detectron2's keys may be that every run reads; :mod:`.model_ranges` has those of models.

The defaults are Detectron2's.
"""

import math

from detectron2.config import CfgNode
from PIL import Image

from corrdet.errors import ConfigError
from corrdet.modeling.core.config_checks import NORM
from corrdet.names import config_value
from corrdet.options import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    Key,
    Range,
    at_least,
    is_number,
    is_whole,
    one_of,
)


def list_of(each: Range, what: str, least: int = 0) -> Range:
    """Lists and tuples of at least so many values, each in a range; ``what`` says it in words."""

    def holds(value) -> bool:
        is_list = isinstance(value, list | tuple) and len(value) >= least
        return is_list and all(map(each.holds, value))

    return Range(what, holds)


_TEXTS = list_of(Range("a text", lambda v: isinstance(v, str)), "a tuple of texts")
_SIZES = list_of(at_least(0), "at least one whole number of pixels, each >= 0", 1)
_NUMBERS = list_of(Range("", is_number), "at least one finite number", 1)
POSITIVES = list_of(POSITIVE, "at least one number, each positive and finite", 1)
_ASCENDING = Range(
    "iterations in ascending order, each >= 1",
    lambda v: (
        isinstance(v, list | tuple)
        and all(is_whole(step) and step >= 1 for step in v)
        and all(first < second for first, second in zip(v, v[1:], strict=False))
    ),
)
_EXPECTED = Range(
    "a list of entries such as ['bbox', 'AP', 38.5, 0.2] (task, metric, value, tolerance)",
    lambda v: isinstance(v, list | tuple) and all(map(_is_expected, v)),
)


def _is_expected(entry) -> bool:
    return (
        isinstance(entry, list | tuple)
        and len(entry) == 4
        and all(isinstance(name, str) for name in entry[:2])
        and is_number(entry[2])
        and NOT_NEGATIVE.holds(entry[3])
    )


# Detectron2's own, and Pillow's that come as (H, W, C).
_FORMATS = ("BGR", "RGB", "YUV-BT.601", "L", "HSV", "YCbCr", "CMYK", "RGBA", "RGBX")
_RANGES = {
    "SOLVER.MAX_ITER": at_least(1),
    "SOLVER.IMS_PER_BATCH": at_least(1),
    "SOLVER.REFERENCE_WORLD_SIZE": at_least(0),
    "SOLVER.CHECKPOINT_PERIOD": at_least(1),
    "SOLVER.BASE_LR": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": SHARE_BELOW_1,
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": NOT_NEGATIVE.or_none(),
    "SOLVER.WEIGHT_DECAY_BIAS": NOT_NEGATIVE.or_none(),
    "SOLVER.BIAS_LR_FACTOR": NOT_NEGATIVE.or_none(),
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.STEPS": _ASCENDING,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": at_least(0),
    "SOLVER.WARMUP_METHOD": one_of(("linear", "constant")),
    "TEST.EVAL_PERIOD": at_least(0),
    "TEST.EXPECTED_RESULTS": _EXPECTED,
    "TEST.DETECTIONS_PER_IMAGE": at_least(1),
    "VIS_PERIOD": at_least(0),
    "SEED": Range("below 2 ** 32", lambda v: is_whole(v) and v < 2**32),
    "DATASETS.TRAIN": _TEXTS,
    "DATASETS.TEST": _TEXTS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _TEXTS,
    "DATASETS.PROPOSAL_FILES_TEST": _TEXTS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": at_least(1),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": at_least(1),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "DATALOADER.REPEAT_THRESHOLD": NOT_NEGATIVE,
    "INPUT.FORMAT": one_of(_FORMATS),
    "INPUT.MASK_FORMAT": one_of(("polygon", "bitmask")),
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of(("choice", "range")),
    "INPUT.MAX_SIZE_TRAIN": at_least(1),
    "INPUT.MIN_SIZE_TEST": at_least(0),
    "INPUT.MAX_SIZE_TEST": at_least(1),
    "INPUT.RANDOM_FLIP": one_of(("horizontal", "vertical", "none")),
    "MODEL.PIXEL_MEAN": _NUMBERS,
    "MODEL.PIXEL_STD": POSITIVES,
    "MODEL.RESNETS.NORM": NORM,
    "MODEL.FPN.NORM": NORM,
}
# Of sections with a key ENABLED.
_IF_ENABLED = {
    "INPUT.CROP": {
        "TYPE": one_of(("relative_range", "relative", "absolute", "absolute_range")),
        "SIZE": Range(
            "(height, width), each positive",
            lambda v: POSITIVES.holds(v) and len(v) == 2,
        ),
    },
    "SOLVER.CLIP_GRADIENTS": {
        "CLIP_TYPE": one_of(("value", "norm", "full_model")),
        "CLIP_VALUE": POSITIVE,
        "NORM_TYPE": Range(
            "positive or inf", lambda v: isinstance(v, int | float) and (v > 0 or v == math.inf)
        ),
    },
    "TEST.AUG": {
        "MIN_SIZES": list_of(at_least(1), "at least one whole number of pixels, each >= 1", 1),
        "MAX_SIZE": at_least(1),
    },
    "TEST.PRECISE_BN": {"NUM_ITER": at_least(1)},
}


def check_ranges(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: a value that no training can have, or two that do not go together; the message
            starts with its key.
    """
    check_each(cfg, _RANGES)
    for section, ranges in _IF_ENABLED.items():
        if config_value(cfg, section).ENABLED:
            check_each(cfg, {f"{section}.{name}": range_ for name, range_ in ranges.items()})
    _check_input(cfg)
    size, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if size and batch % size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which SOLVER.REFERENCE_WORLD_SIZE {size} processes "
            "cannot share equally"
        )


def check_each(cfg: CfgNode, ranges: dict[str, Range]) -> None:
    """
    Raises:
        ConfigError: a value is out of its range; the message starts with its key.
    """
    for name, range_ in ranges.items():
        Key(None, range_).check(name, config_value(cfg, name))


def _check_input(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std):
        raise ConfigError(
            f"MODEL.PIXEL_STD must have a number for each of the {len(mean)} channels of "
            f"MODEL.PIXEL_MEAN, got {list(std)}"
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ConfigError(
            "INPUT.MIN_SIZE_TRAIN must be the least and the greatest size, as "
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range', got {sizes!r}"
        )
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return
    is_relative = crop.TYPE.startswith("relative")
    fits = all(side <= 1 if is_relative else is_whole(side) for side in crop.SIZE)
    if not fits or (crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]):
        expected = {
            "absolute": "whole pixels",
            "absolute_range": "whole pixels, the least and the greatest side",
        }.get(crop.TYPE, "shares of the image, each in (0, 1]")
        raise ConfigError(
            f"INPUT.CROP.SIZE must be {expected}, as INPUT.CROP.TYPE is {crop.TYPE!r}, got "
            f"{list(crop.SIZE)}"
        )


def check_channels(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: ``MODEL.PIXEL_MEAN`` is of another number of channels than images have that
            corrdet's mapper reads.
    """
    name, mean = cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN
    channels = 3 if name in ("BGR", "YUV-BT.601") else len(Image.new(name, (1, 1)).getbands())
    if len(mean) != channels:
        raise ConfigError(
            f"MODEL.PIXEL_MEAN must have a number for each of the {channels} channel(s) of "
            f"INPUT.FORMAT {name!r}, got {list(mean)}"
        )
