"""The data sets that are evaluated on: loaded, checked, and where their results go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from corrdet.coco import read_once
from corrdet.data import load_dataset
from corrdet.data.coco import read_annotations, used_part
from corrdet.data.dataset import in_training_order
from corrdet.data.proposals import add_proposals


def load_test_set(cfg: CfgNode, name: str) -> list[dict]:
    """Load a data set that is evaluated on; what it is compared with is checked, too.

    AP is measured against the annotation file, without what the keys ``DATASETS.SKIP_*`` leave out.
    pycocotools dies of some masks, or does not end, after all images have been seen.

    Raises:
        CocoFileError: a box or mask of the file cannot be compared.
        AnnotationError, ImageReadError, ValueError, TypeError, KeyError: see :func:`load_dataset`.
        ProposalError: with ``MODEL.LOAD_PROPOSALS``, see :func:`add_proposals`.
    """
    kept = _kept.get()
    if kept is not None and name in kept.sets and kept.sets[name][0] is cfg:
        return kept.sets[name][1]
    with read_once():
        # Kept here, so that it is not parsed again when the classes of the training set were read.
        metadata = MetadataCatalog.get(name)
        is_coco = name in DatasetCatalog and metadata.get("evaluator_type") == "coco"
        file = read_annotations(metadata.json_file) if is_coco else None
        dicts = in_training_order(cfg, name, load_dataset(cfg, name, is_train=False))
        dicts = add_proposals(cfg, "TEST", name, dicts)
        check_ground_truth(cfg, name, dicts)
        del file
    if kept is not None:
        kept.add(name, cfg, dicts)
    return dicts


class _Kept:
    """The test sets that were loaded last; no more than are asked for again."""

    def __init__(self, most: int):
        self.most = most
        self.sets: dict[str, tuple[CfgNode, list[dict]]] = {}

    def add(self, name: str, cfg: CfgNode, dicts: list[dict]) -> None:
        self.sets.pop(name, None)
        while len(self.sets) >= self.most:
            del self.sets[next(iter(self.sets))]
        self.sets[name] = cfg, dicts


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def load_once(most: int = 1) -> Iterator[None]:
    """In the block, a test set that is asked for again, by loader and evaluator, is the same list.

    Files are parsed once as well, see :func:`corrdet.coco.read_once`. A block in a block is part of
    it.

    Args:
        most: so many sets are kept at a time.
    """
    token = _kept.set(_kept.get() or _Kept(most))
    try:
        with read_once():
            yield
    finally:
        _kept.reset(token)


def check_ground_truth(cfg: CfgNode, name: str, dicts: list[dict] | None = None) -> None:
    """Look for what AP cannot be measured against in the annotation file of a data set, if any.

    Args:
        cfg: the config.
        name: of the data set.
        dicts: what is used of it; None for all of the file.

    Raises:
        CocoFileError: a box or mask of the file cannot be compared.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco":
        return
    file = read_annotations(metadata.json_file)
    if not file.has_annotations:  # as in the files of COCO's test sets
        return
    if dicts is not None and leaves_out(cfg):
        file = used_part(file, dicts)
    for iou_type in ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",):
        file.ground_truth(iou_type)


def results_folder(cfg: CfgNode, kind: str, name: str) -> str:
    """``OUTPUT_DIR/<kind>``; several test sets have folders of their own in it, by their names."""
    own = [name] if len(cfg.DATASETS.TEST) > 1 else []
    return os.path.join(cfg.OUTPUT_DIR, kind, *own)


def leaves_out(cfg: CfgNode) -> bool:
    """Whether parts of a test set may be left out."""
    return cfg.DATASETS.SKIP_UNREADABLE or cfg.DATASETS.SKIP_BAD_ANNOTATIONS
