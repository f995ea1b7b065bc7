"""Small problems for the measures: made by hand, or at random with everything that can go wrong."""

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = 200


def ground_truth(annotations, images=(1, 2), categories=(1, 2)) -> dict:
    """annotations: (image, category, xywh), and crowd and area if given."""
    content = {
        "images": [
            {"id": i, "width": SIZE, "height": SIZE, "file_name": f"{i}.jpg"} for i in images
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": [],
    }
    for number, (image, category, box, *more) in enumerate(annotations, 1):
        crowd, area = [*more, *(0, box[2] * box[3])[len(more) :]]
        content["annotations"].append(
            {"id": number, "image_id": image, "category_id": category, "bbox": list(box),
             "iscrowd": crowd, "area": area}
        )  # fmt: skip
    return content


def detections(rows) -> list[dict]:
    """rows: (image, category, xywh, score)."""
    return [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in rows
    ]


def random_problem(seed: int, images: int = 12, ties: bool = True, masks: bool = False):
    """Crowds, all ranges of areas and their borders, ties of scores and of IoUs, objects found many
    times, images and classes without objects, more than 100 detections of an image and class.

    Returns:
        content of an annotation file and of a results file, ids neither dense nor in order.
    """
    rng = np.random.default_rng(seed)
    annotations, rows = [], []
    image_ids = (rng.permutation(images) * 7 + 3).tolist()
    categories = [5, 1, 9, 4]  # there is no object of 4
    for image_id in image_ids:
        image_annotations = []
        for _ in range(rng.choice([0, 1, 3, 12])):
            side = rng.choice([8, 32, 60, 96, 150])
            width, height = side * rng.integers(4, 9, 2) / 8
            box = [*rng.integers(0, 40, 2).astype(float), width, height]
            area = width * height * rng.choice([1, 1, 0.7])
            category = categories[rng.integers(3)]
            image_annotations.append((image_id, category, box, int(rng.random() < 0.15), area))
        annotations += image_annotations
        count = rng.choice([0, 5, 40, 150])
        for _ in range(count):
            if image_annotations and rng.random() < 0.8:
                _, category, box, *_ = image_annotations[rng.integers(len(image_annotations))]
                box = (np.array(box) + rng.integers(-4, 5, 4) * rng.integers(0, 2)).clip(0).tolist()
                category = category if rng.random() < 0.9 else 5
            else:
                box = rng.integers(0, 60, 4).astype(float).tolist()
                category = categories[rng.integers(4)] if count < 150 else 5
            score = rng.integers(0, 21) / 20 if ties else rng.random()
            rows.append((image_id, category, box, float(score)))
    content = ground_truth(annotations, image_ids, categories)
    results = detections(rows)
    if masks:
        add_masks(content, results)
    return content, results


def add_masks(content: dict, results: list[dict]) -> None:
    """Ellipses in the boxes: as polygons, for crowds as run lengths; results have masks alone."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)

    def polygon(box):
        x, y, width, height = box
        points = [
            x + width * (1 + np.cos(angles)) / 2,
            y + height * (1 + np.sin(angles)) / 2,
        ]
        return np.stack(points, axis=1).ravel().tolist()

    for annotation in content["annotations"]:
        annotation["segmentation"] = [polygon(annotation["bbox"])]
        if annotation["iscrowd"]:
            mask = np.asfortranarray(np.zeros((SIZE, SIZE), np.uint8))
            x, y, width, height = map(int, annotation["bbox"])
            mask[y : y + height, x : x + width] = 1
            runs = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
            counts = np.diff(runs, prepend=0, append=SIZE * SIZE).tolist()
            annotation["segmentation"] = {"size": [SIZE, SIZE], "counts": counts}
    for row in results:
        encoded = mask_utils.frPyObjects([polygon(row.pop("bbox"))], SIZE, SIZE)
        mask = mask_utils.merge(encoded)
        row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}


def pycocotools_evaluation(content: dict, results: list[dict], iou_type: str = "bbox") -> COCOeval:
    """COCOeval after evaluate, accumulate and summarize."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, **copy.deepcopy(content)}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def as_lists(value):
    """A copy of what JSON can hold, with lists in place of arrays."""
    if isinstance(value, dict):
        return {key: as_lists(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_lists, value))
    return value.tolist() if isinstance(value, np.ndarray) else value
