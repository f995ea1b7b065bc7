"""Priors, ground truths and plain helpers that the tests of all matchings share.

Coordinates are multiples of 1/2 and small, so that areas and squared distances are exact and what
is a tie for the code under test is one for its plain twin too.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

SIZE = 96
STRIDES = (8, 16, 32, 64, 128)
NUM_CLASSES = 7
# Of the levels: distances to sides for FCOS, scales of objects for FoveaBox.
RANGES = ((0, 16), (16, 32), (32, 64), (64, 128), (128, math.inf))
SCALES = ((1, 24), (12, 48), (24, 96), (48, 192), (96, 2048))


def pyramid(side=8, dtype=torch.float32):
    """Square priors with sides of `side` strides: (R, 4), and how many each level has."""
    levels = []
    for stride in STRIDES:
        cells = torch.arange(-(-SIZE // stride)) * stride + stride / 2
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        half = side * stride / 2
        levels.append(torch.stack([x - half, y - half, x + half, y + half], dim=-1).view(-1, 4))
    return torch.cat(levels).to(dtype), [len(level) for level in levels]


def random_objects(count, seed=0, largest=120):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(-20, 2 * SIZE, (count, 2), generator=generator) / 2
    sides = torch.randint(1, 2 * largest, (count, 2), generator=generator) / 2
    return torch.cat([corners, corners + sides], dim=1)


def hostile_objects():
    """name -> boxes (M, 4)."""
    pixel = torch.tensor([[40.0, 40, 41, 41], [44, 44, 45, 45], [0, 0, 1, 1], [95, 95, 96, 96]])
    crowd = torch.tensor([[16.0, 16, 80, 80]]).repeat(30, 1)
    grid = torch.tensor([[x, y, x + 32.0, y + 32] for x in range(0, 96, 16) for y in (0, 16, 32)])
    return {
        "none": torch.zeros(0, 4),
        "one": torch.tensor([[10.0, 20, 60, 80]]),
        "random": random_objects(12),
        "many": random_objects(1000, seed=1, largest=40),
        "one pixel": pixel,
        "smaller than any prior": random_objects(20, seed=2, largest=3),
        "equal boxes": crowd,
        "ties in a grid": grid,
        "nested": torch.tensor([[48.0 - s, 48 - s, 48 + s, 48 + s] for s in range(1, 48)]),
        "larger than the image": torch.tensor([[-500.0, -400, 600, 700]]),
        "outside the image": torch.tensor([[5000.0, 5000, 5050, 5020], [-90, -90, -80, -80]]),
        "without area": torch.tensor([[30.0, 30, 30, 30], [20, 20, 20, 60], [60, 60, 40, 40]]),
    }


def classes_of(boxes):
    return torch.arange(len(boxes)) % NUM_CLASSES


every_object = pytest.mark.parametrize("name", hostile_objects())


def plain_area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def plain_iou(a, b, dtype):
    """IoU of two boxes as lists, rounded to the dtype as a division in it would be."""
    a = [a[0], a[1], max(a[0], a[2]), max(a[1], a[3])]
    b = [b[0], b[1], max(b[0], b[2]), max(b[1], b[3])]
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = plain_area(a) + plain_area(b) - shared
    return torch.tensor(shared / union if union else 0.0).double().to(dtype).item()


def assert_matches(result, expected, gt_boxes, gt_classes):
    """Compare labels and boxes with the plain list of ground truths, None for background."""
    labels, boxes = (value.cpu() for value in result)
    assert labels.dtype == torch.int64 and boxes.dtype == gt_boxes.dtype
    assert len(labels) == len(boxes) == len(expected)
    gt_classes = gt_classes.tolist()
    wanted = [NUM_CLASSES if match is None else gt_classes[match] for match in expected]
    assert labels.tolist() == wanted
    for index, match in enumerate(expected):
        if match is not None:
            assert boxes[index].tolist() == gt_boxes[match].tolist()


def scikit_learn(values, max_iterations=100, tolerance=1e-3):
    """The mixture of two Gaussians of one row of values."""
    values = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    mixture = GaussianMixture(
        2,
        covariance_type="full",
        tol=tolerance,
        reg_covar=1e-6,
        max_iter=max_iterations,
        weights_init=[0.5, 0.5],
        means_init=[[values.min()], [values.max()]],
        precisions_init=[[[1.0]], [[1.0]]],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        return mixture.fit(values)
