"""Detectron2's dataset mapper, with errors that name the image, and empty images made trainable."""

import copy
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks

from corrdet.config_keys import declare
from corrdet.options import SHARE, Key, at_least, numbers

from .augmentation import check_input, fixed_size, ssd_augmentations
from .checks import check_mask_format
from .coco import classes_of
from .image_checks import (
    OTHERWISE,
    SKIP_ADVICE,
    ImageReadError,
    ImageSizeError,
    read_otherwise,
    unreadable_reason,
)
from .images import read_image
from .keypoints import flip_indices
from .turning import RandomTurn, check_turning

# Beside Detectron2's own ENABLED, TYPE and SIZE. DETR and Sparse R-CNN: 0.5 and (400, 500, 600).
declare(
    "INPUT.CROP",
    PROBABILITY=Key(1.0, SHARE, "share of the images that are cropped"),
    MIN_SIZE_BEFORE=Key(
        (),
        numbers(each=at_least(1)),
        "crop the image with one of these as its shorter side; () for its own size",
    ),
)


class CorrdetDatasetMapper(DatasetMapper):
    """Map a dataset dict to what models take: read, augment, make tensors and instances.

    It differs from :class:`detectron2.data.DatasetMapper` in seven ways:

    - An image that cannot be read, or has another size than stated, raises a
      :class:`~corrdet.errors.CorrdetError` with the file's name.
    - Images are read by :func:`.images.read_image`: those of 16 bits are scaled, and EXIF turns
      only those whose stated size is the turned one.
    - An image without objects gets empty ``instances`` with every field that others have, so that
      it can be trained on (``DATALOADER.FILTER_EMPTY_ANNOTATIONS False``).
    - ``keep_instances``: at test time, too, the ground truth is returned as ``instances``, in the
      coordinates of the resized image, as in training. The measure of how well scores rank the
      boxes of one image needs it.
    - Augmentations can ask for ``boxes``, those of the objects that are not crowds, (N, 4) XYXY.
    - Boxes and polygons that are integers in the annotation file are resized like any other. There
      the result of resizing them is written into an integer array, which moves every edge by up to
      one pixel.
    - Keypoints change places in mirrored images as :func:`.keypoints.flip_indices` says, and
      objects without keypoints have invisible ones.

    Augmentations and mask settings come from the config as they do there, with two more keys of
    ``INPUT.CROP``, ``INPUT.SSD_AUGMENTATION``, ``INPUT.RANDOM_TURN`` and ``INPUT.FIXED_SIZE``;
    masks in COCO's RLE need ``INPUT.MASK_FORMAT "bitmask"``.
    """

    @configurable
    def __init__(self, is_train: bool, *, keep_instances: bool = False, **arguments) -> None:
        """
        Args:
            is_train: whether the result is for training.
            keep_instances: whether to keep the ground truth if it is not.
            arguments: those of :class:`detectron2.data.DatasetMapper`.
        """
        super().__init__(is_train, **arguments)
        # The base class uses this attribute for one thing: to drop the annotations when it is
        # False. Augmentations were chosen before.
        self.is_train = is_train or keep_instances

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        check_input(cfg)
        check_turning(cfg)
        base = cfg.clone()
        base.defrost()
        base.MODEL.KEYPOINT_ON = False
        arguments = super().from_config(base, is_train)
        if cfg.MODEL.KEYPOINT_ON:
            # Detectron2 asks the training set at test time as well, where nothing is mirrored.
            number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
            if is_train:
                classes_of(cfg.DATASETS.TRAIN[0])  # puts names into the metadata
            indices = flip_indices(cfg) if is_train else list(range(number))
            arguments |= {"use_keypoint": True, "keypoint_hflip_indices": indices}
        crop = cfg.INPUT.CROP
        if is_train and crop.ENABLED:
            # The first augmentation is the crop.
            augmentations = arguments["augmentations"]
            sizes, probability = crop.get("MIN_SIZE_BEFORE", ()), crop.get("PROBABILITY", 1.0)
            if sizes:
                resize = T.ResizeShortestEdge(list(sizes), sample_style="choice")
                augmentations[0] = T.AugmentationList([resize, augmentations[0]])
            if probability < 1:
                augmentations[0] = T.RandomApply(augmentations[0], probability)
        size = fixed_size(cfg, is_train)
        if size:
            arguments["augmentations"] = [
                T.Resize(size) if isinstance(augmentation, T.ResizeShortestEdge) else augmentation
                for augmentation in arguments["augmentations"]
            ]
        if is_train and cfg.INPUT.get("SSD_AUGMENTATION", False):
            arguments["augmentations"][:0] = ssd_augmentations(cfg)
        if is_train and cfg.INPUT.get("RANDOM_TURN", False):
            arguments["augmentations"].append(RandomTurn())
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: one image in Detectron2's data set format; not changed.

        Returns:
            The dict with ``image``, (C, H, W) uint8, and ``instances`` (see the class).

        Raises:
            ImageReadError: the image cannot be read.
            ImageSizeError: it does not have the stated size.
            AnnotationError: a mask is not of polygons, with ``INPUT.MASK_FORMAT "polygon"``.
        """
        mapper = copy.copy(self)
        mapper.augmentations = T.AugmentationList(
            [_GiveBoxes(_object_boxes(dataset_dict)), *self.augmentations.augs]
        )
        try:
            return mapper._map(dataset_dict)
        except Exception as error:
            # Which part failed is found out afterwards: that costs nothing as long as nothing
            # fails.
            reason = unreadable_reason(dataset_dict["file_name"], self.image_format)
            if reason is not None:
                raise ImageReadError(
                    f"cannot read image {dataset_dict['file_name']} ({reason}). {SKIP_ADVICE}"
                ) from error
            if isinstance(error, SizeMismatchError):
                raise ImageSizeError(str(error)) from error
            if self.use_instance_mask and self.instance_mask_format == "polygon":
                check_mask_format([dataset_dict])
            raise

    def _map(self, dataset_dict: dict) -> dict:
        """What :class:`detectron2.data.DatasetMapper` does, whose reading cannot be replaced."""
        dataset_dict = copy.deepcopy(dataset_dict)
        stated = None
        if {"width", "height"} <= dataset_dict.keys():
            stated = (dataset_dict["width"], dataset_dict["height"])
        image = read_image(dataset_dict["file_name"], self.image_format, stated)
        utils.check_image_size(dataset_dict, image)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)
        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(augmented)
        image, sem_seg = augmented.image, augmented.sem_seg
        image_shape = image.shape[:2]
        if image.dtype == np.float64:  # as Detectron2 gives YUV-BT.601, which no model takes
            image = image.astype(np.float32)
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape) -> None:
        for annotation in dataset_dict["annotations"]:
            _make_floating(annotation)
            if self.use_keypoint and self.keypoint_hflip_indices is not None:
                # Those of an image come in one array.
                annotation.setdefault("keypoints", [0.0] * (3 * len(self.keypoint_hflip_indices)))
        if any(not annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            dataset_dict.pop("annotations")
            dataset_dict["instances"] = self._empty_instances(image_shape)

    def _empty_instances(self, image_shape: tuple[int, int]) -> Instances:
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(torch.zeros((0, 4)))
        instances.gt_classes = torch.zeros((0,), dtype=torch.int64)
        if self.use_instance_mask:
            if self.instance_mask_format == "polygon":
                instances.gt_masks = PolygonMasks([])
            else:
                instances.gt_masks = BitMasks(torch.zeros((0, *image_shape), dtype=torch.bool))
        if self.use_keypoint and self.keypoint_hflip_indices is not None:
            instances.gt_keypoints = Keypoints(
                torch.zeros((0, len(self.keypoint_hflip_indices), 3))
            )
        return instances


def check_mapper(mapper: Callable, dicts: Sequence[dict]) -> None:
    """Whether a mapper reads images as the checks of the data set have said.

    A warning, where that is not known, as of functions of one's own.

    Raises:
        ImageReadError: it is Detectron2's, which takes images of 16 bits for white ones, and turns
            by EXIF what is stated to be as it is stored.
    """
    files = [record["file_name"] for record in dicts if record.get(OTHERWISE)]
    if not files or isinstance(mapper, CorrdetDatasetMapper):
        return
    found = _found_otherwise(files)
    if isinstance(mapper, DatasetMapper) and type(mapper).__call__ is DatasetMapper.__call__:
        raise ImageReadError(
            found + "Detectron2's DatasetMapper reads them wrongly: expected a "
            "corrdet.data.CorrdetDatasetMapper, which takes the same arguments"
        )
    logging.getLogger(__name__).warning(
        found + "A mapper of one's own reads them by corrdet.data.images.read_image(file_name, "
        "format, (width, height))"
    )


def warn_of_own_loaders(cfg: CfgNode, split: str, method: str) -> None:
    """Say which images Detectron2's mapper reads wrongly, where a loader of the user's reads them.

    With ``DATASETS.CHECK_IMAGES "none"`` no file is looked at.

    Args:
        cfg: the config.
        split: "TRAIN" or "TEST".
        method: that builds the loader, for the message.
    """
    if cfg.DATASETS.CHECK_IMAGES == "none":
        return
    files = []
    for name in cfg.DATASETS[split]:
        try:
            dicts = DatasetCatalog.get(name)
            files += read_otherwise(name, dicts)
        except Exception:  # what such a loader reads need not be what is registered
            continue
    if files:
        logging.getLogger(__name__).warning(
            "%s gives a loader of its own: %sDetectron2's DatasetMapper reads them wrongly, "
            "corrdet.data.CorrdetDatasetMapper, which takes the same arguments, rightly",
            method,
            _found_otherwise(files),
        )


def _found_otherwise(files: Sequence[str]) -> str:
    """What is said of images that Detectron2 reads wrongly."""
    return (
        f"{len(files)} image(s) have 16 or 32 bits a channel, or are not to be turned by EXIF, as "
        f"the data set states the size of the stored pixels; the first is {files[0]}. "
    )


class _GiveBoxes(T.Augmentation):
    """Gives the boxes to the augmentations behind it, which Detectron2's mapper does not.

    Args:
        boxes: (N, 4), XYXY.
    """

    def __init__(self, boxes: np.ndarray) -> None:
        super().__init__()
        self.boxes = boxes

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        aug_input.boxes = self.boxes
        return T.NoOpTransform()


def _object_boxes(dataset_dict: dict) -> np.ndarray:
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in dataset_dict.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _make_floating(annotation: dict) -> None:
    annotation["bbox"] = [float(number) for number in annotation["bbox"]]
    if isinstance(annotation.get("segmentation"), list):
        polygons = annotation["segmentation"]
        annotation["segmentation"] = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
