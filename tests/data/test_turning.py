"""Photographs without an up: boxes, masks and pixels turn together."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from corrdet.data.mapper import CorrdetDatasetMapper
from corrdet.data.turning import RandomTurn, TransposeTransform, check_turning
from corrdet.errors import ConfigError


def test_boxes_and_pixels_turn_together():
    image = np.zeros((6, 9, 3), np.uint8)
    image[1:3, 4:9] = 200
    transform = TransposeTransform()
    turned = transform.apply_image(image)
    assert turned.shape == (9, 6, 3) and turned.flags.c_contiguous
    (x1, y1, x2, y2) = transform.apply_box(np.array([[4.0, 1.0, 9.0, 3.0]]))[0].astype(int)
    assert (turned[y1:y2, x1:x2] == 200).all() and turned.sum() == image.sum()
    segmentation = transform.apply_segmentation(image[..., 0])
    assert (segmentation == turned[..., 0]).all()
    assert (transform.inverse().apply_image(turned) == image).all()


def test_all_eight_ways_are_alike():
    np.random.seed(0)
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    ways: dict[bytes, int] = {}
    for _ in range(800):
        transform = RandomTurn().get_transform(image)
        turned = transform.apply_image(image)
        box = transform.apply_box(np.array([[2.0, 0.0, 3.0, 1.0]]))[0].astype(int)
        assert turned[box[1], box[0]] == 2
        key = bytes([turned.shape[0]]) + turned.tobytes()
        ways[key] = ways.get(key, 0) + 1
    assert len(ways) == 8 and min(ways.values()) > 60


def test_in_training_alone(tiny_cfg):
    tiny_cfg.INPUT.RANDOM_TURN = True
    last = CorrdetDatasetMapper(tiny_cfg, is_train=True).augmentations.augs[-1]
    assert isinstance(last, RandomTurn)
    mapper = CorrdetDatasetMapper(tiny_cfg, is_train=False)
    assert all(isinstance(a, T.ResizeShortestEdge) for a in mapper.augmentations.augs)


def test_keypoints_are_refused(tiny_cfg):
    tiny_cfg.INPUT.RANDOM_TURN = True
    check_turning(tiny_cfg)
    tiny_cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match="RANDOM_TURN .* expected MODEL.KEYPOINT_ON False"):
        check_turning(tiny_cfg)
