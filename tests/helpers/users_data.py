"""Small data sets as users bring them: bright rectangles on noise, in COCO's format."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

SIDE = 96
CLASSES = ("cat", "dog")


def rectangles(folder: Path, images: int = 4, classes=CLASSES, seed: int = 0) -> dict:
    """Images of SIDE x SIDE in ``folder/images``, each with two rectangles.

    Returns:
        content of their annotation file, complete.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    for image_id in range(1, images + 1):
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for _ in range(2):
            x, y, width, height = (int(n) for n in (*rng.integers(5, 40, 2), 20, 30))
            pixels[y : y + height, x : x + width] = 200
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id,
                 "category_id": int(rng.integers(1, len(classes) + 1)),
                 "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0,
                 "segmentation": [corners]}
            )  # fmt: skip
        name = f"{image_id:04}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        content["images"].append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
    return content


def for_each(part: str, **values) -> Callable[[dict], None]:
    """A change of a content: each row of ``part`` gets values; ``...`` takes a key away."""

    def change(content: dict) -> None:
        for row in content[part]:
            for key, value in values.items():
                if value is ...:
                    row.pop(key, None)
                else:
                    row[key] = value(row[key]) if callable(value) else value

    return change


def write(folder: Path, content: dict, name: str = "train", encoding: str = "utf-8") -> str:
    """Write an annotation file; returns the part of DATASETS.REGISTER behind the name."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding=encoding)
    return f"{path}:{folder / 'images'}"


def perfect_outputs(dicts: list[dict]) -> list[dict]:
    """Each object of dataset dicts found exactly, as the outputs of a model."""
    outputs = []
    for record in dicts:
        objects = record["annotations"]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.linspace(0.9, 0.5, len(objects))
        instances.pred_classes = torch.tensor(
            [a["category_id"] for a in objects], dtype=torch.int64
        )
        outputs.append({"instances": instances})
    return outputs
