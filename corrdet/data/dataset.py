"""The images of a config's data sets: loaded, checked, filtered and joined."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency

from corrdet.config import declare
from corrdet.errors import ConfigError, CorrdetError
from corrdet.options import BOOL, Key

from .checks import check_dataset, check_images_exist, check_mask_format, check_num_classes
from .classes import follow_classes
from .coco import classes_of, load_registered

declare(
    "DATASETS",
    SKIP_UNREADABLE=Key(
        False,
        BOOL,
        "True: images that cannot be read are found before training, named and left out. "
        "False: missing ones are an error before training, a damaged one when it is read",
    ),
    SKIP_BAD_ANNOTATIONS=Key(
        False,
        BOOL,
        "True: degenerate or out-of-image boxes are named and left out. False: they are an error",
    ),
)


class EmptyDatasetError(CorrdetError, ValueError):
    """A data set has no image, or none to train on."""


class DatasetTypeError(CorrdetError, TypeError):
    """What a registered function returns is no list of dicts."""


def load_dataset(cfg: CfgNode, name: str) -> list[dict]:
    """Load a data set and check its classes, images and annotations.

    ``DATASETS.SKIP_UNREADABLE`` and ``DATASETS.SKIP_BAD_ANNOTATIONS`` are off where the config
    lacks them.

    Raises:
        AnnotationError: a file or annotations that cannot be used, or more classes than the model.
        ImageReadError: missing images, without ``SKIP_UNREADABLE``.
        EmptyDatasetError: there is no image.
        DatasetTypeError: it is not a list of dicts.
        KeyError: it is not registered.
    """
    skip_bad_annotations = cfg.DATASETS.get("SKIP_BAD_ANNOTATIONS", False)
    dicts = load_registered(name, skip_bad_annotations=skip_bad_annotations)
    if not isinstance(dicts, list):
        raise DatasetTypeError(
            f"data set {name!r} is a {type(dicts).__name__}, not a list of dicts"
        )
    if not dicts:
        raise EmptyDatasetError(f"data set {name!r} has no images")
    check_num_classes(cfg, name)
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        check_mask_format(dicts)
    skip_unreadable = cfg.DATASETS.get("SKIP_UNREADABLE", False)
    if not skip_unreadable:
        check_images_exist(name, dicts)
    return check_dataset(
        name,
        dicts,
        skip_unreadable=skip_unreadable,
        skip_bad_annotations=skip_bad_annotations,
        check_masks=cfg.MODEL.MASK_ON,
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
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("DATASETS.TRAIN names no data set")
    joined: list[dict] = []
    for number, name in enumerate(names):
        dicts = load_dataset(cfg, name)
        if number:
            dicts = in_training_order(cfg, name, dicts)
        if cfg.MODEL.LOAD_PROPOSALS:
            dicts = load_proposals_into_dataset(dicts, cfg.DATASETS.PROPOSAL_FILES_TRAIN[number])
        joined += dicts
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
