"""The images of a config's data sets: loaded, checked, filtered and joined."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency

from corrdet.coco.reading import without_collecting
from corrdet.config_keys import declare
from corrdet.errors import ConfigError, CorrdetError
from corrdet.names import kind_of
from corrdet.options import BOOL, Key, Range

from .checks import check_dataset, check_mask_format, check_num_classes
from .classes import follow_classes
from .coco import classes_of, load_registered
from .image_checks import check_image_headers, check_images_exist
from .keypoints import check_keypoints, flip_indices
from .proposals import add_proposals
from .resizing import ways

IMAGE_CHECKS = ("none", "header", "whole")
declare(
    "DATASETS",
    SKIP_UNREADABLE=Key(
        False,
        BOOL,
        "True: images that cannot be read, or have another size than stated, are found before "
        "training, named and left out, of a test set also of AP. False: they are an error, as "
        "CHECK_IMAGES finds them",
    ),
    CHECK_IMAGES=Key(
        "header",
        Range("one of 'none', 'header', 'whole'", lambda v: v in IMAGE_CHECKS, IMAGE_CHECKS),
        "before training and evaluation, compare sizes and EXIF with the header of each image; "
        "'whole' decodes each, which finds damaged ones; 'none' looks for the files only",
    ),
    SKIP_BAD_ANNOTATIONS=Key(
        False,
        BOOL,
        "True: degenerate or out-of-image boxes are named and left out, of a test set also of AP. "
        "False: they are an error",
    ),
)


class EmptyDatasetError(CorrdetError, ValueError):
    """A data set has no image, or none to train on."""


class DatasetTypeError(CorrdetError, TypeError):
    """What a registered function returns is no list of dicts."""


def load_dataset(cfg: CfgNode, name: str, *, is_train: bool = True) -> list[dict]:
    """Load a data set and check its classes, images and annotations.

    ``DATASETS.SKIP_UNREADABLE`` and ``DATASETS.SKIP_BAD_ANNOTATIONS`` are off where the config
    lacks them.

    Args:
        cfg: the config.
        name: of the data set.
        is_train: whether images will be resized as in training, or as in tests.

    Raises:
        AnnotationError: a file or annotations that cannot be used, or more classes than the model.
        ImageReadError: missing or unreadable images, without ``SKIP_UNREADABLE``.
        ImageSizeError: images of another size than stated, or too long, without it.
        EmptyDatasetError: there is no image.
        DatasetTypeError: it is not a list of dicts.
        KeyError: it is not registered.
    """
    with without_collecting():
        return _load_dataset(cfg, name, is_train)


def _load_dataset(cfg: CfgNode, name: str, is_train: bool) -> list[dict]:
    skip_bad_annotations = cfg.DATASETS.get("SKIP_BAD_ANNOTATIONS", False)
    dicts = load_registered(
        name, skip_bad_annotations=skip_bad_annotations, masks=cfg.MODEL.MASK_ON
    )
    if not isinstance(dicts, list):
        raise DatasetTypeError(f"data set {name!r} is {kind_of(dicts)}, not a list of dicts")
    if not dicts:
        raise EmptyDatasetError(f"data set {name!r} has no images")
    check_num_classes(cfg, name)
    if cfg.MODEL.KEYPOINT_ON:
        check_keypoints(cfg, name)
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        check_mask_format(dicts)
    skip_unreadable = cfg.DATASETS.get("SKIP_UNREADABLE", False)
    if not skip_unreadable:
        check_images_exist(name, dicts)
    how = cfg.DATASETS.get("CHECK_IMAGES", "header")
    if how != "none":
        steps = ways(cfg, is_train)
        dicts = check_image_headers(name, dicts, skip=skip_unreadable, steps=steps)
    if not dicts:
        raise EmptyDatasetError(f"no image of data set {name!r} can be used")
    return check_dataset(
        name,
        dicts,
        skip_unreadable=skip_unreadable,
        skip_bad_annotations=skip_bad_annotations,
        check_images=how == "whole",
        check_masks=cfg.MODEL.MASK_ON,
        num_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else None,
    )


def in_training_order(cfg: CfgNode, name: str, dicts: list[dict]) -> list[dict]:
    """A loaded data set with the classes of the first of ``DATASETS.TRAIN``, in its order.

    Raises:
        AnnotationError: it has other classes; see :func:`.classes.follow_classes`.
    """
    if not cfg.DATASETS.TRAIN:
        return dicts
    leader = cfg.DATASETS.TRAIN[0]
    return follow_classes(name, dicts, leader, classes_of(leader))


def training_dicts(cfg: CfgNode) -> list[dict]:
    """Load, check, filter and join the data sets ``DATASETS.TRAIN``.

    Like :func:`detectron2.data.get_detection_dataset_dicts`, on :func:`load_dataset`.

    Raises:
        ConfigError: no data set is named.
        EmptyDatasetError: no image is left.
        AnnotationError, ImageReadError, DatasetTypeError, KeyError: see :func:`load_dataset`.
        ProposalError: see :func:`~corrdet.data.proposals.add_proposals`.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("DATASETS.TRAIN names no data set")
    joined: list[dict] = []
    for number, name in enumerate(names):
        dicts = load_dataset(cfg, name)
        if number:
            dicts = in_training_order(cfg, name, dicts)
        joined += add_proposals(cfg, "TRAIN", name, dicts)
    if cfg.MODEL.KEYPOINT_ON:
        flip_indices(cfg)  # what is wrong with them is said now, whatever mapper there will be
    if all("annotations" in record for record in joined):
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            joined = filter_images_with_only_crowd_annotations(joined)
        if cfg.MODEL.KEYPOINT_ON:
            minimum = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            joined = filter_images_with_few_keypoints(joined, minimum)
        check_metadata_consistency("thing_classes", names)
        classes = MetadataCatalog.get(names[0]).get("thing_classes")
        if classes is not None and joined:
            print_instances_class_histogram(joined, classes)
    if not joined:
        raise EmptyDatasetError(f"no image of {', '.join(names)} has an object to train on")
    return joined
