"""Augmentation as in SSD, as Detectron2's augmentations and transforms.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, Sec. 2.2 ("Data augmentation")
for distorted colors and sampled patches, Sec. 3.6 for the expansion. Detectors "(512)" of the APE
paper are trained with it. ``INPUT.SSD_AUGMENTATION`` and ``INPUT.FIXED_SIZE`` turn it on in
:class:`~corrdet.data.mapper.CorrdetDatasetMapper`.

Like Detectron2's, the augmentations draw from numpy's global generator, which the loader seeds for
each sample.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.ops import pairwise_iou
from corrdet.options import BOOL, Key, Range, is_whole


def _is_size(value) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) in (0, 2)
    return is_list and all(is_whole(side) and side > 0 for side in value)


_KEYS = declare(
    "INPUT",
    SSD_AUGMENTATION=Key(
        False,
        BOOL,
        "augmentation as in SSD (Liu et al. 2016, Sec. 2.2 and 3.6) in training, before resizing "
        "and flipping: distorted colors, expansion, and crops by the IoU with the objects",
    ),
    FIXED_SIZE=Key(
        (),
        Range(
            "(height, width) in pixels such as (512, 512), or () to keep the aspect ratio",
            _is_size,
        ),
        "(height, width) of all images in training and at test, in place of the keys MIN_SIZE_* "
        "and MAX_SIZE_*; the aspect ratio is not kept",
    ),
    FIXED_SIZE_AT_TEST=Key(
        True,
        BOOL,
        "False: FIXED_SIZE is for training alone, and images at test are resized by MIN_SIZE_TEST "
        "and MAX_SIZE_TEST, as by the authors of AP, aLRP and APE loss",
    ),
)


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    Contrast comes before or after saturation and hue. The ranges are those of the authors' code;
    the paper leaves them open.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        image_format: str = "BGR",
    ) -> None:
        """
        Args:
            brightness: largest value added to all pixels, of 255.
            contrast: range of the factor of all pixels.
            saturation: range of the factor of the saturation (HSV).
            hue: largest angle by which hues are turned, in degrees.
            image_format: ``"BGR"`` or ``"RGB"``, the order of the channels.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def sometimes(low: float, high: float, otherwise: float) -> float:
            value, is_applied = self._rand_range(low, high), self._rand_range() < 0.5
            return value if is_applied else otherwise

        return ColorTransform(
            brightness=sometimes(-self.brightness, self.brightness, 0.0),
            contrast=sometimes(*self.contrast, 1.0),
            saturation=sometimes(*self.saturation, 1.0),
            hue=sometimes(-self.hue, self.hue, 0.0),
            contrast_first=self._rand_range() < 0.5,
            image_format=self.image_format,
        )


class ColorTransform(Transform):
    """Brightness, contrast, saturation and hue of an image; nothing moves.

    Values stay in [0, 255] after each step.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        contrast_first: bool = True,
        image_format: str = "BGR",
    ) -> None:
        """
        Args:
            brightness: is added to all pixels.
            contrast: factor of all pixels.
            saturation: factor of the saturation (HSV), which is at most 1 afterwards.
            hue: angle by which hues are turned, in degrees.
            contrast_first: contrast comes before saturation and hue, not after.
            image_format: ``"BGR"`` or ``"RGB"``.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """
        Args:
            img: (H, W, 3), values in [0, 255].

        Returns:
            A new array of the same shape and dtype.
        """
        image = (img.astype(np.float32) + self.brightness).clip(0, 255)
        if self.contrast_first:
            image = (image * self.contrast).clip(0, 255)
        image = self._change_hsv(image)
        if not self.contrast_first:
            image = (image * self.contrast).clip(0, 255)
        return image.round().astype(img.dtype)

    def _change_hsv(self, image: np.ndarray) -> np.ndarray:
        if self.saturation == 1 and self.hue == 0:
            return image
        channels = (2, 1, 0) if self.image_format == "BGR" else (0, 1, 2)
        red, green, blue = (image[..., channel] for channel in channels)
        value = np.maximum(np.maximum(red, green), blue)
        chroma = value - np.minimum(np.minimum(red, green), blue)
        divisor = np.maximum(chroma, 1e-6)
        # In sixths of the circle, from -1 to 5.
        hue = np.where(
            value == red,
            (green - blue) / divisor,
            np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
        )
        hue += self.hue / 60
        # Saturation is chroma / value.
        chroma = np.minimum(chroma * self.saturation, value)
        changed = np.empty_like(image)
        for channel, start in zip(channels, (5, 3, 1), strict=True):
            position = (start + hue) % 6
            changed[..., channel] = value - chroma * np.minimum(position, 4 - position).clip(0, 1)
        return changed

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class Expand(T.Augmentation):
    """Place the image at random on a larger canvas of the mean color ("zoom out", Sec. 3.6)."""

    def __init__(
        self, mean: Sequence[float], max_ratio: float = 4.0, probability: float = 0.5
    ) -> None:
        """
        Args:
            mean: value of each channel of the canvas, in the order of the image's channels.
            max_ratio: of the sides of canvas and image; the paper's canvas has up to 16 times the
                area.
            probability: of expanding at all.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.probability:
            return NoOpTransform()
        height, width = image.shape[:2]
        ratio = self._rand_range(1, self.max_ratio)
        canvas_height, canvas_width = int(height * ratio), int(width * ratio)
        return ExpandTransform(
            x0=np.random.randint(canvas_width - width + 1),
            y0=np.random.randint(canvas_height - height + 1),
            width=canvas_width,
            height=canvas_height,
            mean=self.mean,
        )


class ExpandTransform(Transform):
    """An image on a canvas, its upper left corner at (x0, y0); masks are 0 around it."""

    def __init__(self, x0: int, y0: int, width: int, height: int, mean: Sequence[float]) -> None:
        """
        Args:
            x0, y0: place of the image on the canvas.
            width, height: of the canvas.
            mean: value of each channel of the canvas.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._place(img, np.round(self.mean))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._place(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords + (self.x0, self.y0)

    def _place(self, image: np.ndarray, fill) -> np.ndarray:
        canvas = np.empty((self.height, self.width, *image.shape[2:]), dtype=image.dtype)
        canvas[...] = fill
        rows, columns = image.shape[:2]
        canvas[self.y0 : self.y0 + rows, self.x0 : self.x0 + columns] = image
        return canvas


class MinIoUCrop(T.Augmentation):
    """Sample a patch by the IoUs of patch and objects (Sec. 2.2).

    With equal probability the image stays whole, or the patch is any, or has at least one of
    ``min_ious`` as its IoU with every object. The centre of at least one object is inside. Where
    ``trials`` patches have failed, the choice is made anew. Without objects any patch will do.

    That the IoU is that with *every* object is the wording of the paper, and what the
    implementation that the APE paper uses does; the authors of SSD ask for one object.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_scale: float = 0.3,
        max_aspect_ratio: float = 2.0,
        trials: int = 50,
    ) -> None:
        """
        Args:
            min_ious: the least IoUs.
            min_scale: smallest side of a patch, as a part of the image's; 0.3 for about a tenth of
                the area.
            max_aspect_ratio: of the sides of a patch; the smallest is its inverse.
            trials: patches drawn for a least IoU.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """
        Args:
            image: (H, W, ...).
            boxes: (N, 4) objects, XYXY.
        """
        options = (None, 0.0, *self.min_ious)
        while True:
            min_iou = options[np.random.randint(len(options))]
            if min_iou is None:
                return NoOpTransform()
            patches = self._draw_patches(*image.shape[:2])
            sides = patches[:, 2:] - patches[:, :2]
            ratios = sides[:, 0] / sides[:, 1]
            fits = np.maximum(ratios, 1 / ratios) <= self.max_aspect_ratio
            if len(boxes):
                ious = pairwise_iou(torch.as_tensor(patches), torch.as_tensor(boxes).double())
                fits &= (ious >= min_iou).all(dim=1).numpy()
                fits &= _centers_inside(boxes, patches).any(axis=1)
            if fits.any():
                x0, y0 = patches[fits.argmax(), :2].astype(int).tolist()
                width, height = sides[fits.argmax()].astype(int).tolist()
                return ObjectCropTransform(x0, y0, width, height)

    def _draw_patches(self, height: int, width: int) -> np.ndarray:
        """(trials, 4) patches of whole pixels, XYXY."""
        image = np.array([width, height])
        scales = self._rand_range(self.min_scale, 1, (self.trials, 2))
        sides = np.maximum(np.floor(scales * image), 1)
        corners = np.floor(self._rand_range(0, 1, (self.trials, 2)) * (image - sides + 1))
        return np.concatenate([corners, corners + sides], axis=1)


class ObjectCropTransform(CropTransform):
    """A crop that keeps objects whose centre is inside.

    The boxes of others become points, so that Detectron2's mapper leaves the objects out. Boxes
    that are kept reach out of the crop as far as they did; the mapper clips them. Polygons are
    clipped, without the shapely that the base class needs for it.
    """

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        box = np.asarray(box)
        patch = np.array([[self.x0, self.y0, self.x0 + self.w, self.y0 + self.h]])
        return np.where(_centers_inside(box, patch).T, super().apply_box(box), 0.0)

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """
        Args:
            polygons: (K, 2) each.

        Returns:
            What is inside of those that have an area there.
        """
        corner = (self.x0, self.y0)
        clipped = [_clip_polygon(polygon - corner, (self.w, self.h)) for polygon in polygons]
        return [polygon for polygon in clipped if _area(polygon) > 0]


def _centers_inside(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """(P, N): whether the centres of the boxes (N, 4) are inside of the patches (P, 4)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((patches[:, None, :2] < centers) & (centers < patches[:, None, 2:])).all(axis=2)


def _clip_polygon(polygon: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """The part (L, 2) of a polygon (K, 2) in [0, width] x [0, height].

    Half-plane by half-plane, as in Sutherland and Hodgman 1974.
    """
    for axis in (0, 1):
        for bound, sign in ((0.0, 1.0), (size[axis], -1.0)):
            distances = sign * (polygon[:, axis] - bound)
            before, distances_before = np.roll(polygon, 1, axis=0), np.roll(distances, 1)
            is_inside = distances >= 0
            crosses = is_inside != (distances_before >= 0)
            part = distances_before / np.where(crosses, distances_before - distances, 1.0)
            crossings = before + (polygon - before) * part[:, None]
            points = np.stack([crossings, polygon], axis=1)
            polygon = points[np.stack([crosses, is_inside], axis=1)]
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def ssd_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Everything of SSD's augmentation that comes before resizing and flipping.

    Reads ``INPUT.FORMAT`` and, for the canvas, ``MODEL.PIXEL_MEAN``.
    """
    return [
        PhotometricDistortion(image_format=cfg.INPUT.FORMAT),
        Expand(cfg.MODEL.PIXEL_MEAN),
        MinIoUCrop(),
    ]


def fixed_size(cfg: CfgNode, is_train: bool) -> tuple[int, int] | tuple[()]:
    """(height, width) that all images are resized to, or () where they keep their aspect ratio."""
    if not is_train and not cfg.INPUT.get("FIXED_SIZE_AT_TEST", True):
        return ()
    return tuple(cfg.INPUT.get("FIXED_SIZE", ()))


def check_input(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: ``INPUT.FIXED_SIZE`` is no size, or ``INPUT.SSD_AUGMENTATION`` is on together
            with another crop, or for images without colors.
    """
    # A config without corrdet's keys is one with their defaults.
    for name, key in _KEYS.items():
        key.check(f"INPUT.{name}", cfg.INPUT.get(name, key.default))
    if not cfg.INPUT.get("SSD_AUGMENTATION", False):
        return
    if cfg.INPUT.CROP.ENABLED:
        raise ConfigError(
            "INPUT.SSD_AUGMENTATION crops images itself: it does not go with INPUT.CROP.ENABLED"
        )
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise ConfigError(
            "INPUT.SSD_AUGMENTATION distorts colors: expected INPUT.FORMAT 'BGR' or 'RGB', got "
            f"{cfg.INPUT.FORMAT!r}"
        )
