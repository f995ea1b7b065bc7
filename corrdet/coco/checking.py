"""Everything that is wrong with an annotation file, listed for who corrects it.

:mod:`~corrdet.coco.arrays` stops at the first row that cannot be measured against; these functions
look at all rows, and say which image an object is of.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as mask_utils

from .masks import MaskError, check_encodings, encode
from .messages import MAX_LISTED, describe, listing, short
from .polygons import Outlines, is_packed
from .reading import CocoFile
from .rules import CocoFileError, has_corners, is_box, is_id, is_number, is_text, lists_of

# What a row must have for Detectron2's loader, by list, and what it must be; sizes and boxes are
# looked at elsewhere.
ID = (is_id, "a whole number or a text")
TEXT = (is_text, "a text")
ANYTHING = (lambda value: True, "")
NEEDED = {
    "images": ("image", {"id": ID, "file_name": TEXT, "width": ANYTHING, "height": ANYTHING}),
    "annotations": ("annotation", {"id": ID, "image_id": ID, "category_id": ID}),
    "categories": ("category", {"id": ID, "name": TEXT}),
}
NO_SEGMENTATION = "its mask is neither polygons nor COCO's run-length encoding"


def check_coco_file(file: CocoFile) -> None:
    """Whether a training can take its objects from the file.

    Loaders fail with errors that name neither file nor annotation. What they read without
    complaint, such as boxes without area, is not looked at here.

    Raises:
        CocoFileError: not what COCO's format has; names the file, and the first ten images and
            annotations by their ids.
    """
    images, annotations, categories = lists_of(file.content, file.path)
    if not categories:
        raise CocoFileError(f"{file.path} has no categories")
    problems = [
        *_incomplete(categories, "categories"),
        *_incomplete(images, "images"),
        *_incomplete(annotations, "annotations"),
    ]
    problems = problems or list(_unlike_ids(images, annotations))
    problems = problems or list(_bad_annotations(images, annotations, categories))
    if problems:
        raise CocoFileError(f"{file.path} has {len(problems)} error(s):\n{listing(problems)}")


def polygon_problems(file: CocoFile) -> list[str]:
    """A sentence for each object with polygons that Detectron2's loader leaves out.

    With the last polygon of an object it leaves out the object, and says how many, but not which.

    Args:
        file: that has been loaded without an error.
    """
    file_names = {image["id"]: image["file_name"] for image in file.content["images"]}
    problems = []
    for annotation in file.content.get("annotations", ()):
        segmentation = annotation.get("segmentation")
        if not segmentation or isinstance(segmentation, dict) or is_packed(segmentation):
            continue
        reason = next(filter(None, map(_polygon_problem, segmentation)), None)
        if reason and annotation["image_id"] in file_names:
            image = file_names[annotation["image_id"]]
            problems.append(f"{image}: annotation id {annotation['id']}: {reason}")
    return problems


def mask_problem(segmentation, width: float, height: float) -> str:
    """What is wrong with the mask of one object; an empty text if nothing is.

    Args:
        segmentation: polygons, COCO's run-length encoding or an array, and not nothing.
        width: of its image; infinite if it is not known.
        height: of its image; infinite if it is not known.
    """
    try:
        if isinstance(segmentation, dict):
            return _run_length_problem(segmentation, width, height)
        if isinstance(segmentation, np.ndarray):
            return "" if segmentation.any() else "its mask is empty"
        if isinstance(segmentation, list):
            return _shape_problem(segmentation, width, height)
    except MaskError as error:
        return f"its mask: {error.reason}"
    except (KeyError, TypeError, ValueError):
        pass
    return NO_SEGMENTATION


def have_no_problem(masks: Sequence, sizes: Sequence[tuple]) -> np.ndarray:
    """Of which of n masks :func:`mask_problem` says nothing, (n,) bool.

    It may be False of others that are good, such as run lengths: they are left to that function.

    Args:
        masks: of n objects.
        sizes: width and height of their images.
    """
    good = np.zeros(len(masks), dtype=bool)
    rows = [row for row, mask in enumerate(masks) if is_packed(mask)]
    if rows:
        outlines = Outlines([masks[row] for row in rows])
        images = np.array([sizes[row] for row in rows], dtype=np.float64)[outlines.masks]
        is_within = np.all((outlines.low < images) & (outlines.high > 0), axis=1)
        is_finite = np.isfinite(outlines.low + outlines.high).all(axis=1)
        # A little more than a pixel, as mask_problem's sums are rounded otherwise.
        is_seen = outlines.sum(outlines.areas) > 1.001
        good[rows] = outlines.any(is_within) & outlines.all(is_finite) & is_seen
    return good


def has_plain_rows(file: CocoFile) -> bool:
    """Whether ids, file names and class names are there and what they should be.

    Otherwise :func:`check_coco_file` says what is not. For a million rows it takes a second.
    """
    content = file.content
    for part, (_, keys) in NEEDED.items():
        rows = content.get(part, []) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            return False
        try:
            for key, (is_right, _) in keys.items():
                if is_right is is_id:
                    if not {type(row[key]) for row in rows} <= {int, str}:
                        return False
                elif not all(is_right(row[key]) for row in rows):
                    return False
        except (KeyError, TypeError, IndexError):
            return False
    return not list(_unlike_ids(content["images"], content.get("annotations", [])))


def _incomplete(rows: list, part: str) -> Iterator[str]:
    what, keys = NEEDED[part]
    for index, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            identity = f"id {row['id']}" if "id" not in missing else f"number {index}"
            yield f"{what} {identity}: has no {', '.join(missing)}"
            continue
        identity = f"{what} id {row['id']}" if is_id(row["id"]) else f"{part}[{index}]"
        for key, (is_right, words) in keys.items():
            if not is_right(row[key]):
                yield f"{identity}: expected {words} as {key}, got {describe(row[key])}"


def _unlike_ids(images: list, annotations: list) -> Iterator[str]:
    """Ids that are texts where those of the images are numbers, which are of no image."""
    types = {type(image["id"]) for image in images}
    others = {type(row["image_id"]) for row in annotations} - types
    if types and others:
        for row in annotations:
            if type(row["image_id"]) in others:
                yield (
                    f"annotation id {row['id']}: image_id is {describe(row['image_id'])}, but ids "
                    f"of images are {' and '.join(sorted(t.__name__ for t in types))}"
                )


def _bad_annotations(images: list, annotations: list, categories: list) -> Iterator[str]:
    names = {category["id"]: category["name"] for category in categories}
    known = ", ".join(f"{key} ({name})" for key, name in list(names.items())[:MAX_LISTED])
    known += ", ..." if len(names) > MAX_LISTED else ""
    file_names = {image["id"]: image["file_name"] for image in images}
    seen = set()
    for annotation in annotations:
        category, box = annotation["category_id"], annotation.get("bbox")
        reasons = []
        if annotation["id"] in seen:
            reasons.append("another annotation has the same id")
        seen.add(annotation["id"])
        if category not in names:
            reasons.append(f"category_id {category!r} is not among the categories: {known}")
        if not is_box(box):
            reasons.append(f"bbox is {short(box)}, expected [x, y, width, height]")
        if not _is_segmentation(annotation.get("segmentation")):
            reasons.append(NO_SEGMENTATION)
        image = file_names.get(annotation["image_id"], f"image {annotation['image_id']!r}")
        for reason in reasons:
            yield f"{image}: annotation id {annotation['id']}: {reason}"


def _is_segmentation(segmentation) -> bool:
    """Whether Detectron2's loader can read it."""
    if not isinstance(segmentation, dict):
        is_list = isinstance(segmentation, list)
        return not segmentation or (
            is_list and all(isinstance(part, list | np.ndarray) for part in segmentation)
        )
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        try:
            encode(0, segmentation, segmentation["size"][::-1])
        except (KeyError, TypeError, ValueError):
            return False
    return "size" in segmentation and counts is not None


def _polygon_problem(polygon) -> str | None:
    if not isinstance(polygon, list | np.ndarray):
        return NO_SEGMENTATION
    if not has_corners(polygon):
        return (
            f"a polygon of its mask has {len(polygon)} coordinates, not an even number of at "
            "least 6"
        )
    return None


def _shape_problem(polygons: list, width: float, height: float) -> str:
    within = False
    area: float = 0.0
    for polygon in polygons:
        reason = _polygon_problem(polygon)
        if reason:
            return reason
        is_array = isinstance(polygon, np.ndarray)
        if not (is_array or all(map(is_number, polygon))) or not np.isfinite(polygon).all():
            return "a polygon of its mask is not finite"
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        within |= x.min() < width and x.max() > 0 and y.min() < height and y.max() > 0
        area += float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    if not within:
        return f"its mask lies outside of the {width} x {height} image (w x h)"
    # One that intersects itself can have pixels, though what it runs around on either side cancels.
    if area < 1 and math.isfinite(width):
        lists = [np.asarray(polygon, dtype=np.float64).tolist() for polygon in polygons]
        return "" if mask_utils.area(encode(0, lists, (width, height))) else "its mask is empty"
    return ""


def _run_length_problem(segmentation: dict, width: float, height: float) -> str:
    if isinstance(segmentation["counts"], list):
        size = (width, height) if math.isfinite(width) else segmentation["size"][::-1]
        segmentation = encode(0, segmentation, size)
    size = (width, height) if math.isfinite(width) else (0, 0)
    check_encodings([segmentation], np.array([size]))
    return "" if mask_utils.area(segmentation) else "its mask is empty"
