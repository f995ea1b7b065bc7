"""What tests of data sets and loaders have in common."""

import itertools

import torch
from detectron2.config import get_cfg

from corrdet.data import ResumableLoader


def loader_config(**options):
    """Detectron2's config, without corrdet's keys, for a quick loader.

    Args:
        options: ``A__B=value`` for the key A.B.
    """
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 10
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 128, 160)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def take(loader: ResumableLoader, count: int) -> list[list[dict]]:
    with loader:
        return list(itertools.islice(loader, count))


def same(first: list[list[dict]], second: list[list[dict]]) -> bool:
    """Whether the batches are equal in images, pixels and boxes."""
    return len(first) == len(second) and all(
        len(batch1) == len(batch2)
        and all(
            sample1["image_id"] == sample2["image_id"]
            and torch.equal(sample1["image"], sample2["image"])
            and torch.equal(
                sample1["instances"].gt_boxes.tensor, sample2["instances"].gt_boxes.tensor
            )
            for sample1, sample2 in zip(batch1, batch2, strict=True)
        )
        for batch1, batch2 in zip(first, second, strict=True)
    )
