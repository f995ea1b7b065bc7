"""Turned and mirrored images, for photographs that have no up, such as those from the air."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, Transform, VFlipTransform

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.options import BOOL, Key

declare(
    "INPUT",
    RANDOM_TURN=Key(
        False,
        BOOL,
        "in training images are turned by 0, 90, 180 or 270 degrees and mirrored at random, all "
        "eight ways alike: for photographs that have no up, such as those from the air",
    ),
)


class RandomTurn(T.Augmentation):
    """One of the eight ways to lay a square on itself, all with the same probability."""

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        mirrors, flips, turns = (self._rand_range() < 0.5 for _ in range(3))
        transforms = [HFlipTransform(width)] if mirrors else []
        transforms += [VFlipTransform(height)] if flips else []
        transforms += [TransposeTransform()] if turns else []
        return T.TransformList(transforms)


class TransposeTransform(Transform):
    """x and y change places."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """
        Args:
            img: (H, W) or (H, W, C); segmentations, too.
        """
        return np.ascontiguousarray(np.swapaxes(img, 0, 1))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """
        Args:
            coords: (N, 2), x and y.
        """
        return coords[:, ::-1].copy()

    def inverse(self) -> Transform:
        return self


def check_turning(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: with keypoints, which have a left and a right.
    """
    if cfg.INPUT.get("RANDOM_TURN", False) and cfg.MODEL.KEYPOINT_ON:
        raise ConfigError(
            "INPUT.RANDOM_TURN is for boxes and masks: expected MODEL.KEYPOINT_ON False, or "
            "INPUT.RANDOM_FLIP, which knows a left keypoint from a right one"
        )
