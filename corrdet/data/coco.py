"""COCO files as Detectron2's dataset dicts, made of content that is parsed once.

Detectron2's own loader and evaluator parse the file each for themselves. Here it is
:func:`corrdet.coco.read`, under :func:`corrdet.coco.read_once`, that all of them get it from.
"""

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import coco as detectron2_coco
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from corrdet.coco import (
    AnnotationError,
    CocoFile,
    CocoFileError,
    check_coco_file,
    polygon_problems,
    read,
    read_once,
)
from corrdet.coco.checking import has_plain_rows
from corrdet.coco.masks import encode
from corrdet.coco.messages import describe, listing
from corrdet.coco.polygons import is_packed
from corrdet.coco.rules import (
    are_numbers,
    check_unique_ids,
    has_corners,
    is_crowd_flag,
    is_side,
    lists_of,
    side_words,
)

from .checks import SKIP_ANNOTATIONS_ADVICE
from .classes import ReorderedLoader
from .keypoints import put_keypoints

logger = logging.getLogger(__name__)


def read_annotations(path: str | os.PathLike) -> CocoFile:
    """:func:`corrdet.coco.read`, also of addresses that Detectron2 can read."""
    return read(path, PathManager.open)


def load_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    name: str,
    extra_keys: Sequence[str] = (),
    masks: bool = True,
) -> list[dict]:
    """As Detectron2's ``load_coco_json``: dataset dicts, classes put into the metadata.

    Args:
        json_file: annotations in COCO's format.
        image_root: folder that the file's image names are relative to.
        name: of the data set.
        extra_keys: of annotations, to be kept as they are.
        masks: whether an object without a valid polygon is left out, as Detectron2 does; if not,
            only its mask is.

    Raises:
        AnnotationError, LookupError, TypeError, ValueError: the file is not what COCO's format has;
            :func:`load_registered` finds out what is wrong.
    """
    file = read_annotations(json_file)
    if not has_plain_rows(file):
        check_coco_file(file)
    for part in ("images", "categories"):
        check_unique_ids([row["id"] for row in file.content[part]], part, file.path)
    images = {row["id"]: row for row in file.content["images"]}
    contiguous = _put_classes(name, file.content["categories"])
    by_image: dict[Any, list[dict]] = {image_id: [] for image_id in images}
    annotations = file.content.get("annotations", ())
    for annotation in annotations:
        by_image.get(annotation["image_id"], []).append(annotation)
    _check_ids(file, annotations, by_image)
    keys = ("iscrowd", "bbox", "keypoints", "category_id", *extra_keys)
    dicts, num_left_out = [], 0
    for image_id in sorted(images):
        image = images[image_id]
        for key in ("width", "height"):
            if not is_side(image[key]):
                raise CocoFileError(
                    f"{file.path}: image id {image_id!r} ({image['file_name']}): expected "
                    f"{side_words(key)}, got {describe(image[key])}"
                )
        objects = [
            _object(file, annotation, keys, contiguous, masks) for annotation in by_image[image_id]
        ]
        kept = [entry for entry in objects if entry is not None]
        num_left_out += len(objects) - len(kept)
        dicts.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": int(image["height"]),
                "width": int(image["width"]),
                "image_id": image_id,
                "annotations": kept,
            }
        )
    logger.info(f"Loaded {len(dicts)} images in COCO format from {json_file}")
    if num_left_out:
        logger.warning(f"{json_file}: left out {num_left_out} object(s) without a valid polygon")
    return dicts


def load_registered(
    name: str, *, skip_bad_annotations: bool = False, masks: bool = True
) -> list[dict]:
    """A data set of the catalog; if it is in COCO's format, what is wrong with the file is said.

    Args:
        name: in the catalog.
        skip_bad_annotations: log polygons that the loader leaves out instead of raising.
        masks: whether they are used; see :func:`load_coco`.

    Raises:
        AnnotationError: the file is not what COCO's format has; or polygons of fewer than three
            points or of half a point: names the first ten objects and counts all.
        KeyError: there is no such data set.
    """
    metadata = MetadataCatalog.get(name)
    is_coco = name in DatasetCatalog and metadata.get("evaluator_type") == "coco"
    with read_once():
        try:
            dicts = _loader(DatasetCatalog[name], masks)() if is_coco else DatasetCatalog.get(name)
        except AnnotationError:
            raise
        except Exception:
            # What is wrong is found out afterwards: that costs nothing as long as nothing is.
            if is_coco:
                check_coco_file(read_annotations(metadata.json_file))
            raise
        if is_coco and masks:
            check_coco_polygons(
                read_annotations(metadata.json_file), skip_bad_annotations=skip_bad_annotations
            )
    return dicts


def classes_of(name: str) -> list[str] | None:
    """The classes of a data set, in order, if need be of its file; None if they are not known."""
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if classes is None and metadata.get("evaluator_type") == "coco":
        if PathManager.isfile(metadata.json_file):
            file = read_annotations(metadata.json_file)
            _, _, categories = lists_of(file.content, file.path)
            _put_classes(name, categories)
            classes = metadata.thing_classes
    return None if classes is None else list(classes)


def check_coco_polygons(file: CocoFile, *, skip_bad_annotations: bool = False) -> None:
    """Find the polygons of a file that the loader leaves out.

    Args:
        file: that has been loaded without an error.
        skip_bad_annotations: log them instead of raising.

    Raises:
        AnnotationError: polygons of fewer than three points or of half a point; names the first ten
            objects and counts all.
    """
    problems = polygon_problems(file)
    if not problems:
        return
    found = f"{file.path} has {len(problems)} object(s) with bad polygons"
    if not skip_bad_annotations:
        raise CocoFileError(f"{found}:\n{listing(problems)}\n{SKIP_ANNOTATIONS_ADVICE}")
    logger.warning(f"{found}, which are left out:\n{listing(problems)}")


def used_part(file: CocoFile, dicts: Sequence[dict]) -> CocoFile:
    """An annotation file without the images and objects that checks have left out.

    Args:
        file: of a data set.
        dicts: what is left of it, with the annotations' ids; without ids all objects of the images
            stay.
    """
    ids: set | None = set()
    for record in dicts:
        for annotation in record.get("annotations", ()):
            if "id" not in annotation or ids is None:
                ids = None
                break
            ids.add(annotation["id"])
    images = {record["image_id"] for record in dicts}
    content = file.content
    annotations = [
        row
        for row in content["annotations"]
        if row["image_id"] in images and (ids is None or row["id"] in ids)
    ]
    kept = {
        "images": [image for image in content["images"] if image["id"] in images],
        "annotations": annotations,
    }
    return CocoFile(file.path, {**content, **kept})


def _put_classes(name: str, categories: Sequence[dict]) -> dict[Any, int]:
    """Category id -> class, in the order of the ids; the metadata get both, and keypoints."""
    put_keypoints(name, categories)
    names = {row["id"]: row["name"] for row in categories}
    ids = sorted(names)
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [names[category] for category in ids]
    if (ids[0], ids[-1]) != (1, len(ids)) and "coco" not in name:
        logger.warning(f"{name}: category ids are not 1..{len(ids)}: they are mapped to 0 and on")
    metadata.thing_dataset_id_to_contiguous_id = {
        category: index for index, category in enumerate(ids)
    }
    return metadata.thing_dataset_id_to_contiguous_id


def _check_ids(file: CocoFile, annotations: Sequence[dict], by_image: dict) -> None:
    ids = [annotation["id"] for rows in by_image.values() for annotation in rows]
    if len(ids) < len({annotation["id"] for annotation in annotations}):
        logger.warning(
            f"{file.path} has {len(annotations)} annotations, of which only {len(ids)} are of "
            "images in the file"
        )
    # In these files of COCO's first years a few ids are there twice.
    if len(set(ids)) < len(ids) and "minival" not in file.path:
        raise ValueError(f"{file.path}: annotation ids are not unique")


def _object(
    file: CocoFile,
    annotation: dict,
    keys: Sequence[str],
    contiguous: dict[Any, int],
    masks: bool,
) -> dict | None:
    """One annotation; None where none of its polygons is one."""
    if annotation.get("ignore", 0):
        raise CocoFileError(
            f"{file.path}: annotation id {annotation['id']}: a key 'ignore' is not supported, "
            "'iscrowd' is"
        )
    kept = {key: annotation[key] for key in keys if key in annotation}
    if not is_crowd_flag(annotation.get("iscrowd")):
        raise CocoFileError(
            f"{file.path}: annotation id {annotation['id']}: expected iscrowd to be 0 or 1, got "
            f"{describe(annotation['iscrowd'])}"
        )
    if "iscrowd" in kept and kept["iscrowd"] is None:  # which Detectron2 takes for a crowd
        kept["iscrowd"] = 0
    if kept.get("bbox") in ([], ()):
        raise ValueError(f"{file.path}: annotation id {annotation['id']}: its box is empty")
    segmentation = annotation.get("segmentation")
    if segmentation:
        try:
            kept["segmentation"] = _segmentation(segmentation)
        except Exception:
            if masks:
                raise
        else:
            if not kept["segmentation"]:
                if masks:
                    return None
                del kept["segmentation"]
    if not kept.get("keypoints"):
        kept.pop("keypoints", None)
    elif isinstance(kept["keypoints"], list) and are_numbers(kept["keypoints"]):
        # Pixels count from 0 here, and positions from the corner of the first.
        kept["keypoints"] = [
            value if index % 3 == 2 else value + 0.5
            for index, value in enumerate(kept["keypoints"])
        ]
    kept["bbox_mode"] = BoxMode.XYWH_ABS
    kept["category_id"] = contiguous[annotation["category_id"]]
    return kept


def _segmentation(segmentation: Any) -> Any:
    """What Detectron2 takes: polygons, of which those with too few points are left out, or a mask.

    Raises:
        Exception: of many types, for what is neither.
    """
    if is_packed(segmentation):
        return list(segmentation)
    if not isinstance(segmentation, dict):
        return [polygon for polygon in segmentation if has_corners(polygon)]
    if isinstance(segmentation["counts"], list):
        return encode(0, segmentation, segmentation["size"][::-1])
    return segmentation


def _loader(load: Callable[[], list[dict]], masks: bool) -> Callable[[], list[dict]]:
    """A function of the catalog; :func:`load_coco` is told of masks, and replaces Detectron2's."""
    if isinstance(load, ReorderedLoader):
        return partial(load, _loader(load.load, masks))
    if isinstance(load, partial) and load.func is load_coco:
        return partial(load, masks=masks)
    plain = _registered_by_detectron2(load)
    if plain is None:
        return load
    return partial(load_coco, **plain, extra_keys=("id",), masks=masks)


def _registered_by_detectron2(load: Callable) -> dict[str, Any] | None:
    """json_file, image_root and name, if a loader is that of ``register_coco_instances``."""
    qualname = f"{detectron2_coco.register_coco_instances.__qualname__}.<locals>.<lambda>"
    if (getattr(load, "__module__", None), getattr(load, "__qualname__", None)) != (
        detectron2_coco.__name__,
        qualname,
    ):
        return None
    variables = inspect.getclosurevars(load)
    uses = {"load_coco_json": detectron2_coco.load_coco_json}
    is_plain = variables.globals == uses and not variables.unbound
    given = variables.nonlocals
    return dict(given) if is_plain and given.keys() == {"json_file", "image_root", "name"} else None
