"""The data set ``digits``: handwritten digits on photographs, made from what scikit-learn carries.

Real strokes (``load_digits``: 1797 scans of 8x8 pixels, from the UCI data set "Optical Recognition
of Handwritten Digits") on real backgrounds (the two photographs of ``load_sample_images``), in COCO
format with boxes and masks. It needs no download, takes a minute to make, and small detectors
learn it on a CPU. Train and val share neither a stroke nor a piece of a photograph.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as mask_util
from scipy import ndimage
from tqdm import tqdm

from corrdet.files import atomic_write, datasets_root, prepare_directory

from .catalog import register_prepared

VERSION = 1  # raise it with every change that changes the files: they are then made again
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS: Mapping[str, int] = {"train": 3000, "val": 300}
IMAGE_SIZE = 160  # pixels, both sides

SEED = 20190814
# How many objects an image is to have, and how often. Empty images are in both splits, as in COCO.
NUM_OBJECTS = {0: 0.02, 1: 0.12, 2: 0.2, 3: 0.23, 4: 0.2, 5: 0.13, 6: 0.1}
LONG_SIDE = (24.0, 80.0)  # pixels, of the whole object; log-uniform
MIN_SHORT_SIDE = 10.0
MIN_VISIBLE = 0.45  # share of an object's pixels inside the image and not covered by others
MAX_OUTSIDE = 0.2  # share of an object's width, and of its height, beyond the image's border
MAX_BOX_IOU = 0.4  # of any two visible boxes
MIN_CONTRAST = 100.0  # distance of stroke and background colours, RGB 0..255 weighted as luma
PLACEMENT_ATTEMPTS = 40
JPEG_QUALITY = 93
# Columns of the photographs (china.jpg, flower.jpg; 427 x 640 pixels) that belong to each split.
BACKGROUND_COLUMNS = {"train": ((0, 400), (0, 310)), "val": ((400, 640), (310, 640))}
LUMA = np.array([0.299, 0.587, 0.114])


def register_digits() -> None:
    """Register ``digits_train`` and ``digits_val``; loading one makes the files if need be."""
    for split in COUNTS:
        register_prepared(f"digits_{split}", split, prepare_digits, CLASSES)


def prepare_digits(
    directory: str | Path | None = None, counts: Mapping[str, int] | None = None
) -> Path:
    """Make the data set unless it is there already and complete.

    The same version gives the same annotations, byte for byte, on every run; the first n images do
    not depend on how many follow. Each annotation has, besides COCO's keys, ``source``: the index
    of its stroke in ``load_digits``.

    Args:
        directory: where; ``digits`` below :func:`~corrdet.files.datasets_root` if not given.
        counts: images per split, :data:`COUNTS` if not given.

    Returns:
        The directory: ``annotations/{train,val}.json``, images in ``train/`` and ``val/``.

    Raises:
        WriteError: the directory cannot be written.
        OtherFilesError: it holds something else.
    """
    directory = datasets_root() / "digits" if directory is None else Path(directory)
    counts = dict(COUNTS if counts is None else counts)
    identity = {"name": "digits", "version": VERSION, "counts": counts}
    return prepare_directory(directory, identity, lambda folder: _make(folder, counts))


def _make(directory: Path, counts: Mapping[str, int]) -> None:
    with tqdm(total=sum(counts.values()), desc="making the digits data set", unit="image") as bar:
        for split, count in counts.items():
            _make_split(directory, split, count, bar.update)


def _make_split(directory: Path, split: str, count: int, on_image: Callable[[int], object]) -> None:
    sources = stroke_sources(split)
    backgrounds = _backgrounds(split)
    (directory / split).mkdir()
    images, annotations = [], []
    for image_id in range(1, count + 1):
        # A generator per image: an image does not depend on the ones before it.
        rng = np.random.default_rng([SEED, list(COUNTS).index(split), image_id])
        pixels, objects = _make_scene(rng, sources, backgrounds)
        file_name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(
            directory / split / file_name, quality=JPEG_QUALITY, subsampling=0
        )
        images.append(
            {"id": image_id, "file_name": file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
        )
        for placed in objects:
            annotations.append(_annotation(placed, image_id, annotation_id=len(annotations) + 1))
        on_image(1)
    dataset = {
        "info": {"description": f"digits {split}, version {VERSION}"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    with atomic_write(directory / "annotations" / f"{split}.json") as file:
        json.dump(dataset, file, separators=(",", ":"))


@dataclass
class _Placed:
    """An object in an image. ``alpha``: (H, W) in 0..1, opacity of its stroke on the canvas."""

    source: int
    category: int
    alpha: np.ndarray
    color: np.ndarray  # (H, W, 3) or (3,), RGB 0..255
    full_area: int  # pixels of the stroke, those outside of the image included
    visible: np.ndarray  # (H, W) bool

    def box(self) -> tuple[int, int, int, int]:
        """XYXY of the visible pixels, in continuous coordinates: pixel i covers i..i+1."""
        rows = np.flatnonzero(self.visible.any(axis=1))
        columns = np.flatnonzero(self.visible.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def stroke_sources(split: str) -> np.ndarray:
    """Indices into ``load_digits`` that a split may use: a fifth of each class is kept for val."""
    from sklearn.model_selection import train_test_split

    targets = _digits()[1]
    train, val = train_test_split(
        np.arange(len(targets)), test_size=0.2, random_state=SEED, stratify=targets
    )
    return np.sort({"train": train, "val": val}[split])


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def _backgrounds(split: str) -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [
        Image.fromarray(np.ascontiguousarray(photograph[:, first:last]))
        for photograph, (first, last) in zip(
            load_sample_images().images, BACKGROUND_COLUMNS[split], strict=True
        )
    ]


@lru_cache(maxsize=2048)
def _stroke(source: int, zoom: int = 14) -> Image.Image:
    """The scan enlarged to a smooth grey-level shape, cropped to where there is ink."""
    scan = np.pad(_digits()[0][source], 1) / 16.0
    large = ndimage.zoom(scan, zoom, order=3, mode="grid-constant", grid_mode=True)
    large = ndimage.gaussian_filter(large, 0.28 * zoom)
    # The scans are counts of ink in 4x4 cells. A steep ramp around half of the ink makes an edge of
    # about a cell's quarter; resampling later makes it as sharp as the final resolution allows.
    alpha = np.clip((large - 0.44) / 0.14, 0.0, 1.0)
    image = Image.fromarray(np.round(255 * alpha).astype(np.uint8))
    return image.crop(image.getbbox())


def _make_scene(
    rng: np.random.Generator, sources: np.ndarray, backgrounds: list[Image.Image]
) -> tuple[np.ndarray, list[_Placed]]:
    """Compose one image.

    Returns:
        pixels (H, W, 3), uint8 RGB, and the objects, every one of them visible enough.
    """
    canvas = _background(rng, backgrounds)
    wanted = rng.choice(list(NUM_OBJECTS), p=list(NUM_OBJECTS.values()))
    objects: list[_Placed] = []
    for _ in range(PLACEMENT_ATTEMPTS):
        if len(objects) >= wanted:
            break
        candidate = _place(rng, int(rng.choice(sources)), canvas)
        # A candidate lies on top. It is taken only if everything below stays visible enough, so
        # that no object ever has to be dropped from the annotations while its pixels stay in the
        # image.
        below = [(other, other.visible & ~candidate.visible) for other in objects]
        if not _visible_enough(candidate, candidate.visible) or not all(
            _visible_enough(other, visible) for other, visible in below
        ):
            continue
        previous = [other.visible for other in objects]
        for other, visible in below:
            other.visible = visible
        if any(_box_iou(candidate.box(), other.box()) > MAX_BOX_IOU for other in objects):
            for other, visible in zip(objects, previous, strict=True):
                other.visible = visible
            continue
        canvas = _blend(canvas, candidate)
        objects.append(candidate)
    return _finish(rng, canvas), objects


def _background(rng: np.random.Generator, backgrounds: list[Image.Image]) -> np.ndarray:
    photograph = backgrounds[rng.integers(len(backgrounds))]
    side = int(rng.integers(100, 237))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    crop = photograph.resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop, dtype=np.float32)
    mean = pixels.mean(axis=(0, 1))
    pixels = mean + (pixels - mean) * rng.uniform(0.7, 1.1)
    return np.clip(pixels * rng.uniform(0.85, 1.1, size=3) + rng.uniform(-20, 20), 0, 255)


def _place(rng: np.random.Generator, source: int, canvas: np.ndarray) -> _Placed:
    """Give a stroke a shape, a place and a colour that stands out from what is there."""
    stroke = _stroke(source)
    stretch = float(np.exp(rng.uniform(-0.3, 0.3)))
    width, height = stroke.width * stretch, stroke.height / stretch
    stroke = stroke.resize((round(width), round(height)), Image.Resampling.BICUBIC)
    # Up to 25 degrees: a 6 stays a 6.
    stroke = stroke.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    stroke = stroke.crop(stroke.getbbox())
    long_side = float(np.exp(rng.uniform(*np.log(LONG_SIDE))))
    scale = max(
        long_side / max(stroke.size), MIN_SHORT_SIDE / min(stroke.size)
    )  # the floor is for ones
    size = (max(1, round(stroke.width * scale)), max(1, round(stroke.height * scale)))
    stroke = stroke.resize(size, Image.Resampling.LANCZOS)

    # Part of a side may lie outside, which cuts the object at the border of the image.
    outside = [int(MAX_OUTSIDE * side) for side in size]
    left = int(rng.integers(-outside[0], IMAGE_SIZE - size[0] + outside[0] + 1))
    top = int(rng.integers(-outside[1], IMAGE_SIZE - size[1] + outside[1] + 1))
    sheet = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    sheet.paste(stroke, (left, top))
    alpha = np.asarray(sheet, dtype=np.float32) / 255.0
    visible = alpha >= 0.5
    full_area = int(np.count_nonzero(np.asarray(stroke) >= 128))
    color = _color(rng, canvas, visible)
    # Uneven light: a linear change of brightness along a random direction.
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
    across = (
        (columns - left) / size[0] * np.cos(angle) + (rows - top) / size[1] * np.sin(angle)
    ) - 0.5
    shade = 1.0 + rng.uniform(0, 0.25) * np.clip(across, -1, 1)
    return _Placed(
        source=source,
        category=int(_digits()[1][source]),
        alpha=alpha * rng.uniform(0.88, 1.0),
        color=np.clip(color * shade[..., None], 0, 255),
        full_area=full_area,
        visible=visible,
    )


def _color(rng: np.random.Generator, canvas: np.ndarray, region: np.ndarray) -> np.ndarray:
    """A random colour (3,), at least MIN_CONTRAST away from the mean colour of the region."""
    mean = canvas[region].mean(axis=0) if region.any() else canvas.mean(axis=(0, 1))
    best, best_contrast = mean, -1.0
    for _ in range(12):
        color = rng.uniform(10, 245, size=3)
        contrast = float(np.sqrt((LUMA * (color - mean) ** 2).sum()))
        if contrast >= MIN_CONTRAST:
            return color
        if contrast > best_contrast:
            best, best_contrast = color, contrast
    return best


def _visible_enough(placed: _Placed, visible: np.ndarray) -> bool:
    return int(np.count_nonzero(visible)) >= max(1.0, MIN_VISIBLE * placed.full_area)


def _box_iou(box1: tuple[int, ...], box2: tuple[int, ...]) -> float:
    width = min(box1[2], box2[2]) - max(box1[0], box2[0])
    height = min(box1[3], box2[3]) - max(box1[1], box2[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2)]
    return width * height / (sum(areas) - width * height)


def _blend(canvas: np.ndarray, placed: _Placed) -> np.ndarray:
    alpha = placed.alpha[..., None]
    return canvas * (1 - alpha) + placed.color * alpha


def _finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """What a camera adds: a little blur, a little noise."""
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.5)))
    noise = rng.normal(0, rng.uniform(0, 4), size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    return np.clip(np.round(np.asarray(blurred) + noise), 0, 255).astype(np.uint8)


def _annotation(placed: _Placed, image_id: int, annotation_id: int) -> dict:
    x1, y1, x2, y2 = placed.box()
    rle = mask_util.encode(np.asfortranarray(placed.visible.astype(np.uint8)))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": placed.category + 1,
        # Floats, as in COCO: Detectron2's own mapper rounds integer boxes down when it resizes.
        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        "area": int(np.count_nonzero(placed.visible)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "source": placed.source,
    }
