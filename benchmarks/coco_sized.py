"""Made-up data sets as large as COCO and others: the size of their files, images without sense."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

# As in COCO's train2017, whose file has 470 MB.
MEAN_CORNERS = 23
CROWDS = 0.012
CLASSES = 80
SIZES = [(640, 480)] * 5 + [(480, 640), (640, 427), (640, 426), (500, 375), (427, 640)]
# Links to one file are limited, on ext4 to 65 000.
LINKS = 20_000


def make(
    folder: str | os.PathLike, images: int, objects: int, *, polygons: bool = True, seed: int = 0
) -> tuple[Path, Path]:
    """Write annotations, and an image for each row: hard links to a few files.

    Args:
        folder: where; made if need be.
        images: how many.
        objects: how many; some images have none, many a few, some dozens.
        polygons: whether they have masks: polygons, and run lengths of crowds.
        seed: of everything.

    Returns:
        The annotation file and the folder of images.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    path = folder / "instances.json"
    shares = rng.gamma(0.9, size=images)
    counts = rng.multinomial(objects, shares / shares.sum())
    ids = itertools.count(1)
    rows = []
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"description": "made up"}, "licenses": [], "annotations": [')
        separator = ""
        for index, count in enumerate(counts.tolist()):
            width, height = SIZES[index % len(SIZES)]
            name = f"{index + 1:012d}.jpg"
            rows.append(
                {
                    "license": 3, "file_name": name, "height": height, "width": width,
                    "coco_url": f"http://images.example.org/train2017/{name}",
                    "date_captured": "2013-11-14 11:18:45",
                    "flickr_url": f"http://farm.example.org/{index}_z.jpg", "id": index + 1,
                }
            )  # fmt: skip
            if count:
                objects_here = _objects(rng, count, width, height, index + 1, ids, polygons)
                file.write(separator + json.dumps(objects_here)[1:-1])
                separator = ", "
        categories = [
            {"supercategory": "thing", "id": number, "name": f"class {number}"}
            for number in range(1, CLASSES + 1)
        ]
        file.write(f'], "images": {json.dumps(rows)}, "categories": {json.dumps(categories)}}}')
    _link_images(rng, root, images)
    return path, root


def _objects(rng, count, width, height, image_id, ids, polygons) -> list[dict]:
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    sides = np.minimum(sides, [width - 2, height - 2])
    corners = rng.uniform(0, [width, height] - sides)
    numbers = 3 + rng.geometric(1 / (MEAN_CORNERS - 3), count)
    made = []
    for (x, y), (w, h), number in zip(
        corners.tolist(), sides.tolist(), numbers.tolist(), strict=True
    ):
        crowd = rng.random() < CROWDS
        segmentation: dict | list = []
        if polygons and crowd:
            runs = rng.multinomial(width * height, np.full(301, 1 / 301)).tolist()
            segmentation = {"counts": runs, "size": [height, width]}
        elif polygons:
            angles = np.linspace(0, 2 * np.pi, number, endpoint=False)
            radii = rng.uniform(0.6, 1, number)[:, None] / 2
            outline = np.stack([np.cos(angles), np.sin(angles)], 1) * radii * [w, h]
            outline += [x + w / 2, y + h / 2]
            segmentation = [outline.ravel().round(2).tolist()]
            if number > 60:  # objects in two parts
                half = number // 2 * 2
                segmentation = [segmentation[0][:half], segmentation[0][half:]]
        row = {
            "area": round(0.6 * w * h, 4), "iscrowd": int(crowd), "image_id": image_id,
            "bbox": [round(value, 2) for value in (x, y, w, h)],
            "category_id": int(rng.integers(1, CLASSES + 1)), "id": next(ids),
        }  # fmt: skip
        made.append({"segmentation": segmentation, **row} if polygons else row)
    return made


def _link_images(rng, root: Path, images: int) -> None:
    for place, size in enumerate(SIZES):
        first = None
        for number, index in enumerate(range(place, images, len(SIZES))):
            target = root / f"{index + 1:012d}.jpg"
            target.unlink(missing_ok=True)
            if number % LINKS == 0:
                coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize(size).save(target, quality=90)
                first = target
            else:
                os.link(first, target)
