"""Proposals that were computed before: ``MODEL.LOAD_PROPOSALS`` and ``DATASETS.PROPOSAL_FILES_*``.

Detectron2 reads them with ``pickle.load``, which runs whatever code the file holds. Here nothing of
a file is run. A ``.pkl`` or ``.json`` file has Detectron2's keys, lists with an entry for each
image:

- ``ids``: of the images, as in the data set
- ``boxes``: (N, 4) each
- ``objectness_logits``: (N,) each
- ``bbox_mode``: of all boxes, Detectron2's ``BoxMode`` or its number; by default XYXY in pixels

or Detectron1's ``indexes`` and ``scores`` for the first and third. In a ``.npz`` file the boxes and
logits of all images stand one behind the other, and ``counts`` says how many each image has.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from corrdet.arrays_only import read_array_pickle
from corrdet.coco.messages import listing
from corrdet.errors import ConfigError, CorrdetError
from corrdet.names import kind_of

logger = logging.getLogger(__name__)

_FORMATS = (".pkl", ".npz", ".json")
_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}
_BOX_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


class ProposalError(CorrdetError, ValueError):
    """A file of proposals that cannot be used."""


def check_proposal_files(cfg: CfgNode, *splits: str) -> None:
    """Look for the files of proposals that a config names, without reading them.

    Args:
        cfg: the config.
        splits: "TRAIN" or "TEST".

    Raises:
        ConfigError: there are not as many files as data sets, one is missing or of a format that is
            not read, or a model needs proposals that it does not get.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
            raise ConfigError(
                "MODEL.PROPOSAL_GENERATOR.NAME is 'PrecomputedProposals', which needs "
                "MODEL.LOAD_PROPOSALS True and DATASETS.PROPOSAL_FILES_TRAIN and _TEST"
            )
        return
    for split in splits:
        key = f"DATASETS.PROPOSAL_FILES_{split}"
        names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(names) != len(files):
            raise ConfigError(
                f"{key} has {len(files)} file(s), but DATASETS.{split} has {len(names)} data "
                "set(s): with MODEL.LOAD_PROPOSALS, expected a file for each"
            )
        if len(set(names)) < len(names) and len(set(zip(names, files, strict=True))) > len(
            set(names)
        ):
            raise ConfigError(f"{key} has several files for a data set that is there twice")
        for file in files:
            if not isinstance(file, str) or not file.endswith(_FORMATS):
                raise ConfigError(f"{key}: expected a {' or '.join(_FORMATS)} file, got {file!r}")
            if "://" not in file and not os.path.isfile(file):
                raise ConfigError(f"{key}: no file {file}")
            if "://" in file and file.endswith(".pkl"):
                raise ConfigError(
                    f"{key}: {file} is a pickle at an address: expected a file on this machine, or "
                    ".npz or .json"
                )


def check_proposal_pickles(cfg: CfgNode, *splits: str) -> None:
    """Read the pickles that a config names as proposals, here where their code does not run.

    A loader of Detectron2's, which a trainer of the user's may build, would run it.

    Args:
        cfg: the config.
        splits: "TRAIN" or "TEST".

    Raises:
        ProposalError: as :func:`read_proposals`.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        for split in splits:
            for file in cfg.DATASETS[f"PROPOSAL_FILES_{split}"]:
                if file.endswith(".pkl"):
                    read_proposals(file)


def add_proposals(cfg: CfgNode, split: str, name: str, dicts: list[dict]) -> list[dict]:
    """A data set's images with their proposals, if ``MODEL.LOAD_PROPOSALS`` asks for them.

    Args:
        cfg: the config.
        split: "TRAIN" or "TEST".
        name: of the data set, one of ``DATASETS.<split>``.
        dicts: its images; not changed.

    Returns:
        the images; with proposals, from the best, copies of them.

    Raises:
        ConfigError: as :func:`check_proposal_files`.
        ProposalError: as :func:`read_proposals`, or an image has none.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return dicts
    check_proposal_files(cfg, split)
    names = list(cfg.DATASETS[split])
    path = cfg.DATASETS[f"PROPOSAL_FILES_{split}"][names.index(name)]
    proposals = read_proposals(path)
    index = {str(image_id): number for number, image_id in enumerate(proposals["ids"])}
    missing = [record["image_id"] for record in dicts if str(record["image_id"]) not in index]
    if missing:
        raise ProposalError(
            f"{path} has no proposals of {len(missing)} of the {len(dicts)} images of data set "
            f"{name!r}, of which the ids are:\n{listing(list(map(str, missing)))}"
        )
    logger.info(f"{name}: proposals of {len(dicts)} images from {path}")
    with_proposals = []
    for record in dicts:
        number = index[str(record["image_id"])]
        logits = proposals["objectness_logits"][number]
        order = logits.argsort()[::-1]
        with_proposals.append(
            {
                **record,
                "proposal_boxes": proposals["boxes"][number][order],
                "proposal_objectness_logits": logits[order],
                "proposal_bbox_mode": proposals["bbox_mode"],
            }
        )
    return with_proposals


def read_proposals(path: str) -> dict[str, Any]:
    """
    Args:
        path: of a file as the module describes.

    Returns:
        ``ids``; of each image ``boxes``, (N, 4) float32, and ``objectness_logits``, (N,) float32;
        and ``bbox_mode``.

    Raises:
        ProposalError: it cannot be read, is of another format, or would run code.
    """
    kind = os.path.splitext(path)[1]
    if "://" in path and kind == ".pkl":
        raise ProposalError(f"{path} was not read: it is a pickle at an address")
    try:
        content = _READERS[kind](path)
    except KeyError:
        raise ProposalError(f"{path}: expected a {' or '.join(_FORMATS)} file") from None
    except ProposalError:
        raise
    except Exception as error:  # damaged files make pickle and numpy raise nearly anything
        raise ProposalError(f"{path} was not read: {error or type(error).__name__}") from error
    return _checked(path, content)


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        # Written by Detectron2, the mode is one of its enumeration.
        return read_array_pickle(file, {("detectron2.structures.boxes", "BoxMode"): int})


def _read_json(path: str) -> Any:
    with PathManager.open(path, "r") as file:
        return json.load(file)


def _read_npz(path: str) -> dict[str, Any]:
    with PathManager.open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        content = dict(arrays)
    wanted = {"ids", "boxes", "objectness_logits", "counts"}
    if not wanted <= content.keys():
        raise ProposalError(
            f"{path}: expected {', '.join(sorted(wanted))}, got {', '.join(content)}"
        )
    ends = np.cumsum(content.pop("counts"))
    for key in ("boxes", "objectness_logits"):
        if len(ends) and ends[-1] != len(content[key]):
            raise ProposalError(
                f"{path}: counts add up to {ends[-1]}, but there are {len(content[key])} {key}"
            )
        content[key] = np.split(content[key], ends[:-1]) if len(ends) else []
    content["ids"] = content["ids"].tolist()
    return content


_READERS: dict[str, Callable[[str], Any]] = {
    ".pkl": _read_pickle,
    ".npz": _read_npz,
    ".json": _read_json,
}


def _checked(path: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ProposalError(f"{path}: expected keys and values, got {kind_of(content)}")
    content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
    ids, boxes, logits = (content.get(key) for key in ("ids", "boxes", "objectness_logits"))
    if any(value is None for value in (ids, boxes, logits)):
        raise ProposalError(
            f"{path}: expected the keys ids, boxes and objectness_logits, got {', '.join(content)}"
        )
    if not len(ids) == len(boxes) == len(logits):
        raise ProposalError(
            f"{path}: {len(ids)} ids, but boxes of {len(boxes)} and objectness_logits of "
            f"{len(logits)} images"
        )
    try:
        mode = BoxMode(int(content.get("bbox_mode", BoxMode.XYXY_ABS)))
    except (TypeError, ValueError):
        mode = None
    if mode not in _BOX_MODES:
        raise ProposalError(
            f"{path}: bbox_mode must be 0 (XYXY) or 1 (XYWH), got {content['bbox_mode']!r}"
        )
    if len({str(image_id) for image_id in ids}) < len(ids):
        raise ProposalError(f"{path}: an image id is there more than once")
    checked: dict[str, list] = {"boxes": [], "objectness_logits": []}
    for image_id, image_boxes, image_logits in zip(ids, boxes, logits, strict=True):
        try:
            image_boxes = np.asarray(image_boxes, dtype=np.float32)
            image_logits = np.asarray(image_logits, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ProposalError(f"{path}: image id {image_id}: {error}") from error
        if image_boxes.size == 0:
            image_boxes = image_boxes.reshape(0, 4)
        if (
            image_boxes.shape != (len(image_boxes), 4)
            or image_logits.shape != image_boxes.shape[:1]
        ):
            raise ProposalError(
                f"{path}: image id {image_id}: expected boxes (N, 4) and objectness_logits (N,), "
                f"got {image_boxes.shape} and {image_logits.shape}"
            )
        if not (np.isfinite(image_boxes).all() and np.isfinite(image_logits).all()):
            raise ProposalError(f"{path}: image id {image_id}: a number is not finite")
        checked["boxes"].append(image_boxes)
        checked["objectness_logits"].append(image_logits)
    return {"ids": list(ids), "bbox_mode": mode, **checked}
