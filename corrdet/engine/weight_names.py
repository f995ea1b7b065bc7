"""The names in a file of weights, and those of the model that they are for."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from corrdet.names import kind_of

from .weights import WEIGHTS_KEYS, CheckpointError

# Weights of a part of a model, such as a backbone's, are at least this share of the model's
# tensors, or of the file's. What is less has met by chance.
LEAST_SHARE = 0.1
# What says nothing of whether weights are for a model: constants, and counters of batches.
_INCIDENTAL = re.compile(r"(.+\.)?(pixel_mean|pixel_std|num_batches_tracked)")
# How names of others begin, and what is to be done about it.
_OTHERS = (
    (
        r"backbone\.layer[1-4]\.|bbox_head\.|rpn_head\.",
        "they have mmdetection's names, whose heads are not those of Detectron2: the backbone is "
        "taken if it is a whole ResNet",
    ),
    (
        r"layer[1-4]\.\d+\.",
        "they have names of torchvision's and timm's ResNets, which are converted, but are no "
        "whole one",
    ),
)


def weights_in(data: Mapping[str, Any], path: str) -> tuple[dict[str, Any], str | None]:
    """The weights in what a file holds.

    Args:
        data: the file's content.
        path: of the file, for messages.

    Returns:
        weights by name, and the key that they stand under, None where they are the whole content.

    Raises:
        CheckpointError: there are none, or one of them is no tensor.
    """
    key = next((k for k in WEIGHTS_KEYS if isinstance(data.get(k), Mapping)), None)
    weights = dict(data if key is None else data[key])
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray | np.generic):
            keys = ", ".join(map(str, list(data)[:6])) + (", ..." if len(data) > 6 else "")
            raise CheckpointError(
                f"{path}: {'' if key is None else key + ': '}{name!r} is {kind_of(value)}, "
                f"expected weights by name, in the whole file or under {', '.join(WEIGHTS_KEYS)}; "
                f"it has the keys {keys}"
            )
        reason = _not_plain(value)
        if reason:
            raise CheckpointError(
                f"{path}: {name!r} is {reason}, of which no model here has weights: expected "
                "tensors of plain numbers"
            )
        if isinstance(value, np.generic):
            weights[name] = np.asarray(value)
    if not weights:
        raise CheckpointError(f"{path} has no weights{'' if key is None else f' under {key!r}'}")
    return weights, key


def _not_plain(value: Tensor | np.ndarray | np.generic) -> str:
    """What kind of values cannot be copied to those of a model; '' if they can be."""
    if not isinstance(value, Tensor):
        is_plain = value.dtype.kind in "biufc" and value.dtype.itemsize <= 8 + 8 * (
            value.dtype.kind == "c"
        )
        return "" if is_plain else f"an array of {value.dtype}"
    if value.is_quantized:
        return "quantized"
    if value.is_meta:
        return "a tensor without values, of the device meta"
    return "" if value.layout is torch.strided else f"a tensor of the layout {value.layout}"


def check_kinds(weights: Mapping[str, Any], own: Mapping[str, Tensor], path: str) -> None:
    """
    Args:
        weights: of the file.
        own: of the model.
        path: of the file, for messages.

    Raises:
        CheckpointError: complex numbers for real ones, which would lose their imaginary part.
    """
    for name in weights.keys() & own.keys():
        if _kind(weights[name]) == "c" != _kind(own[name]):
            raise CheckpointError(f"{path}: {name!r} has complex numbers, the model's are real")


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return value.dtype.kind
    return "c" if isinstance(value, Tensor) and value.is_complex() else ""


def without_prefix(
    weights: Mapping[str, Any], own: Collection[str], path: str
) -> tuple[dict[str, Any], str]:
    """Weights without what wrappers put before the names, such as ``module.`` and ``model.``.

    Args:
        weights: by name.
        own: names of the model.
        path: of the file, for messages.

    Returns:
        the weights, and what was left out of the names: the prefix with which most of them are the
        model's, if these are at least half of its or of the file's. What has another stays.

    Raises:
        CheckpointError: two prefixes do as well, such as those of a model and its average.
    """
    counts = Counter({"": 0})
    for name in weights:
        ends = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        counts.update(name[:end] for end in ends if name[end:] in own)
    (prefix, count), *others = counts.most_common()
    if count == counts[""] or 2 * count < min(len(own), len(weights)):
        return dict(weights), ""
    if others and others[0][1] == count:
        raise CheckpointError(
            f"{path} has the model's {count} names twice, behind {prefix!r} and {others[0][0]!r}: "
            "make a file of those that are wanted"
        )
    stripped = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    rest = {n: value for n, value in weights.items() if not n.startswith(prefix)}
    return {**rest, **stripped}, prefix


def check_enough(loaded: Iterable[str], theirs: Collection[str], own: Collection[str], path: str):
    """
    Args:
        loaded: names of the model's tensors that come from the file.
        theirs: names in the file.
        own: all names of the model.
        path: of the file, for messages.

    Raises:
        CheckpointError: none or hardly any of the names are the model's: the training would start
            at random weights.
    """
    loaded, theirs, own = (
        sorted(name for name in names if not _INCIDENTAL.fullmatch(name))
        for names in (loaded, theirs, own)
    )
    if not own or (loaded and len(loaded) >= LEAST_SHARE * min(len(theirs), len(own))):
        return
    found = "none" if not loaded else f"only {len(loaded)}"
    raise CheckpointError(
        f"{found} of the {len(theirs)} tensors in {path} has a name and shape of the model's "
        f"{len(own)}: there {_examples(theirs)}; here {_examples(own)}{_nearest(theirs, own)}. "
        f'{_advice(theirs, own, path)}. MODEL.WEIGHTS "" trains from scratch'
    )


def _examples(names: list[str]) -> str:
    return ", ".join(names[:: max(len(names) // 3, 1)][:3]) + (", ..." if len(names) > 3 else "")


def _nearest(theirs: list[str], own: list[str]) -> str:
    pairs = []
    for name in theirs[:: max(len(theirs) // 20, 1)]:
        near = get_close_matches(name, own, n=1, cutoff=0.7)
        if near and name not in own:
            pairs.append(f"{name} there is like {near[0]} here")
    return "".join(f"; {pair}" for pair in pairs[:2])


def _advice(theirs: list[str], own: list[str], path: str) -> str:
    known = {name[i + 1 :] for name in own for i, letter in enumerate(name) if letter == "."}
    known.update(own)
    by_end = sum(name in known for name in theirs)
    if by_end >= LEAST_SHARE * min(len(theirs), len(own)) and not set(theirs) & set(own):
        return (
            f"{by_end} are ends of the model's names: MODEL.WEIGHTS "
            f"{path}?matching_heuristics=True matches them"
        )
    for pattern, advice in _OTHERS:
        if any(re.match(pattern, name) for name in theirs):
            return advice[0].upper() + advice[1:]
    return "If they are for this model, rename them; a prefix of all is left out by itself"


@contextmanager
def other_shapes() -> Iterator[list[tuple[str, str, tuple, tuple]]]:
    """In the block, what Detectron2 warns of shapes, two lines each, is in a list instead.

    Of names that it finds to be alike; those that are the same it returns.

    Gives:
        name in the file, name in the model, the shapes of both.
    """
    found: list[tuple[str, str, tuple, tuple]] = []

    def is_other(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        match = _OTHER_SHAPE.fullmatch(message)
        if match:
            a, b = (tuple(map(int, re.findall(r"\d+", sizes))) for sizes in match.groups()[1::2])
            found.append((match[1], match[3], a, b))
        return not match and not message.endswith("see if this is desired.")

    logger = logging.getLogger("detectron2.checkpoint.c2_model_loading")
    logger.addFilter(is_other)
    try:
        yield found
    finally:
        logger.removeFilter(is_other)


_OTHER_SHAPE = re.compile(
    r"Shape of (\S+) in checkpoint is torch\.Size\((.*)\), while shape of (\S+) in model is "
    r"torch\.Size\((.*)\)\."
)


def summary(
    loaded: Collection[str],
    new: Collection[str],
    left_over: Collection[str],
    shapes: Collection[tuple[str, tuple, tuple]],
) -> str:
    """In a line, what was loaded and what was not.

    Args:
        loaded, new: names of the model.
        left_over: names of the file.
        shapes: name, shape in the file, shape in the model.
    """
    total = len(loaded) + len(new) + len(shapes)
    parts = [f"{len(loaded)} of the model's {total} tensors are from there"]
    if shapes:
        listed = [f"{name} {tuple(a)} there, {tuple(b)} here" for name, a, b in shapes]
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        parts.append(f"{len(shapes)} have another shape ({'; '.join(listed[:4])}{more})")
    if new:
        parts.append(f"{len(new)} are new ({_groups(new)})")
    if left_over:
        parts.append(f"{len(left_over)} of the file are left over ({_groups(left_over)})")
    return "; ".join(parts)


def table(
    loaded: Collection[str],
    new: Collection[str],
    left_over: Collection[str],
    shapes: Collection[tuple[str, tuple, tuple]],
) -> str:
    """What :func:`summary` says, part by part: how many tensors of each are from where.

    Args:
        loaded, new, left_over, shapes: as there.
    """
    columns = (loaded, new, [name for name, *_ in shapes], left_over)
    counts = [
        Counter(".".join(n.split(".")[:2]) for n in names if not _INCIDENTAL.fullmatch(n))
        for names in columns
    ]
    parts = sorted(set().union(*counts))
    rows = [[part, *(count[part] or "" for count in counts)] for part in parts]
    return tabulate(rows, ("part", "loaded", "new", "another shape", "left over"), "github")


def _groups(names: Collection[str], most: int = 5) -> str:
    """``head.cls_subnet 8, head.bbox_pred 2, ...``."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    if len(counts) > most:
        counts = Counter(name.split(".")[0] for name in names)
    listed = [f"{group} {count}" for group, count in counts.most_common(most)]
    return ", ".join([*listed, "..."] if len(counts) > most else listed)
