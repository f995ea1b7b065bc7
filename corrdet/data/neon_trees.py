"""The data set ``neon_trees``: aerial photographs with hand-drawn boxes of tree crowns.

Images of the National Ecological Observatory Network (NEON), annotated for DeepForest (Weinstein et
al., "Individual tree-crown detection in RGB imagery using semi-supervised deep learning neural
networks", Remote Sensing 11(11), 2019). They are sample files inside DeepForest's package (MIT
licence), which is downloaded from the Python package index and opened as an archive, not installed.

Four photographs at 0.1 m per pixel, cut into tiles of 256 x 256 pixels. No photograph is in both
splits:

======  ====================================  =========================================  =====
split   photograph                            NEON site                                  boxes
======  ====================================  =========================================  =====
train   2019_YELL_2_528000_4978000, a crop    Yellowstone, UTM tile east 528000          574
train   SOAP_061                              Soaproot Saddle, California                37
val     2019_YELL_2_541000_4977000, a crop    Yellowstone, 13 km east of the train one   279
val     OSBS_029                              Ordway-Swisher, Florida: site not in train 61
======  ====================================  =========================================  =====

The one class is ``tree``; the labels Alive and Dead of SOAP_061 count as it.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from corrdet.files import atomic_write, datasets_root, prepare_directory
from corrdet.wheels import Wheel

from .catalog import register_prepared

VERSION = 1  # raise it with every change that changes the files: they are then made again
CLASSES = ("tree",)
WHEEL = Wheel(
    requirement="deepforest==2.1.0",
    file_name="deepforest-2.1.0-py3-none-any.whl",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    variable="CORRDET_NEON_TREES_WHEEL",
    about="its sample images (21 MB)",
)
PHOTOGRAPHS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "SOAP_061"),
    "val": ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029"),
}
TILE = 256  # pixels
# Training tiles overlap, so that every crown is whole in some tile. Validation tiles overlap only
# where the last one is moved back to the border, so that hardly a crown is counted twice.
STRIDE = {"train": 192, "val": 256}
# A crown of which a tile has less than this share of the box is no fair object. It is kept as a
# crowd region, which evaluation ignores, rather than dropped: finding its visible part is no
# mistake.
MIN_SHARE = 0.3
MIN_CROWD_SIDE = 4  # pixels; slivers thinner than this are dropped


def register_neon_trees() -> None:
    """Register ``neon_trees_train`` and ``neon_trees_val``; loading one makes it."""
    for split in PHOTOGRAPHS:
        register_prepared(f"neon_trees_{split}", split, prepare_neon_trees, CLASSES)


def prepare_neon_trees(
    directory: str | os.PathLike | None = None, wheel: str | os.PathLike | None = None
) -> Path:
    """Fetch and convert the data set unless it is there already and complete.

    Args:
        directory: where; ``neon_trees`` below :func:`~corrdet.files.datasets_root` if not
            given.
        wheel: a copy of ``deepforest-2.1.0-py3-none-any.whl``, for machines without a network;
            ``$CORRDET_NEON_TREES_WHEEL`` if not given; otherwise pip downloads it (21 MB).

    Returns:
        The directory: ``annotations/{train,val}.json``, tiles in ``train/`` and ``val/``. Boxes are
        clipped to their tiles; those with less than 30% of their area in a tile are ``iscrowd``.
        Each annotation has, besides COCO's keys, ``share``: the part of its area that is in the
        tile.

    Raises:
        WheelReadError: the wheel cannot be had; the message says what to do.
        WheelContentError: its SHA-256 is not the expected one.
        WriteError: the directory cannot be written.
    """
    directory = datasets_root() / "neon_trees" if directory is None else Path(directory)
    identity = {"name": "neon_trees", "version": VERSION, "sha256": WHEEL.sha256}
    return prepare_directory(directory, identity, lambda folder: _make(folder, wheel))


def _make(directory: Path, wheel: str | os.PathLike | None) -> None:
    with tempfile.TemporaryDirectory(prefix="corrdet-neon-trees-") as temporary:
        archive = WHEEL.fetch(Path(temporary), wheel)
        source = Path(temporary) / "source"
        _extract(archive, source)
        for split in PHOTOGRAPHS:
            _convert(source / split, directory, split)


def _extract(archive: Path, destination: Path) -> None:
    """Copy the photographs and their XML, and nothing else, to ``destination/<split>/``."""
    for split, stems in PHOTOGRAPHS.items():
        (destination / split).mkdir(parents=True)
        for stem in stems:
            for name in (f"{stem}.png", f"{stem}.xml"):
                # Destination names are ours, so no member can name a place outside.
                data = WHEEL.read(archive, f"deepforest/data/{name}")
                (destination / split / name).write_bytes(data)


def _convert(source: Path, directory: Path, split: str) -> None:
    # Here, because `python -m corrdet.data.voc` must not find its module imported already.
    from .voc import convert_voc

    whole = convert_voc(source, source)
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in whole["images"]}
    for annotation in whole["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    (directory / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for record in whole["images"]:
        with Image.open(source / record["file_name"]) as opened:
            photograph = opened.convert("RGB")
        tiles = list(tile_corners(record["width"], record["height"], STRIDE[split]))
        stem = Path(record["file_name"]).stem
        for left, top in tqdm(tiles, desc=f"cutting {stem}", unit="tile"):
            file_name = f"{stem}_{left:04d}_{top:04d}.png"
            tile = photograph.crop((left, top, left + TILE, top + TILE))
            tile.save(directory / split / file_name)
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": file_name, "width": TILE, "height": TILE})
            for box, share in _clip_boxes(boxes[record["id"]], left, top):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(share < MIN_SHARE),
                        "share": round(share, 4),
                    }
                )
    dataset = {
        "info": {"description": f"neon_trees {split}, version {VERSION}"},
        "licenses": [{"id": 1, "name": "MIT", "url": "https://github.com/weecology/DeepForest"}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    with atomic_write(directory / "annotations" / f"{split}.json") as file:
        json.dump(dataset, file)


def tile_corners(width: int, height: int, stride: int) -> Iterator[tuple[int, int]]:
    """Left upper corners (x, y) of tiles that cover a photograph; the last of a row ends at its
    border.

    The photograph must be at least a tile wide and high.
    """
    for top in _starts(height, stride):
        for left in _starts(width, stride):
            yield left, top


def _starts(length: int, stride: int) -> list[int]:
    starts = list(range(0, length - TILE, stride))
    return [*starts, length - TILE]


def _clip_boxes(
    boxes: list[list[float]], left: int, top: int
) -> Iterator[tuple[list[float], float]]:
    """XYWH boxes that reach into a tile: clipped, in the tile's coordinates, with shares."""
    for x, y, width, height in boxes:
        x1, y1 = max(x - left, 0.0), max(y - top, 0.0)
        x2, y2 = min(x + width - left, float(TILE)), min(y + height - top, float(TILE))
        if x2 <= x1 or y2 <= y1:
            continue
        share = (x2 - x1) * (y2 - y1) / (width * height)
        if share < MIN_SHARE and min(x2 - x1, y2 - y1) < MIN_CROWD_SIDE:
            continue
        yield [x1, y1, x2 - x1, y2 - y1], share
