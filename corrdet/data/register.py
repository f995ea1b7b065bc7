"""Users' own COCO-format files as data sets, named in the config instead of in Python.

``DATASETS.REGISTER ("crates_train=data/train.json:data/images",)`` makes ``crates_train`` known to
Detectron2; ``DATASETS.TRAIN ("crates_train",)`` then uses it.
"""

import os
import re
from collections.abc import Iterable
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from corrdet.config_keys import declare
from corrdet.errors import CorrdetError
from corrdet.options import Key, Range

from .coco import load_coco

declare(
    "DATASETS",
    REGISTER=Key(
        (),
        Range(
            "a tuple of texts",
            lambda v: isinstance(v, list | tuple) and all(isinstance(entry, str) for entry in v),
        ),
        'one\'s own COCO-format data sets, each "name=annotations.json:image_folder"',
    ),
)

# The name ends at the first "=", the annotation file at the first ".json:"; a colon may thus be in
# either path, as in "s3://bucket/train.json:s3://bucket/images".
ENTRY = re.compile(r"(?P<name>[^=\s]+)=(?P<json>.+?\.json):(?P<root>.+)")


class RegistrationError(CorrdetError, ValueError):
    """An entry of DATASETS.REGISTER cannot be used."""


def parse_entry(entry: str) -> tuple[str, str, str]:
    """``"name=annotations.json:image_root"`` to (name, annotation file, image folder).

    Raises:
        RegistrationError: if the entry does not have this form.
    """
    match = ENTRY.fullmatch(entry.strip()) if isinstance(entry, str) else None
    if match is None:
        raise RegistrationError(
            f"DATASETS.REGISTER has the entry {entry!r}, which is not of the form "
            "'name=annotations.json:image_root' (a name without spaces, a file that ends in .json, "
            "the folder that the file's image names are relative to)."
        )
    return match["name"], _expand(match["json"]), _expand(match["root"])


def register_from_config(entries: Iterable[str]) -> list[str]:
    """Register COCO-format data sets, all or none of them; the same entry again changes nothing.

    Args:
        entries: strings ``"name=annotations.json:image_root"``, the value of ``DATASETS.REGISTER``.

    Returns:
        The names, in the order of the entries.

    Raises:
        RegistrationError: for a bad form, a missing file or folder, or a name that is taken by a
            data set with other paths.
    """
    accepted: dict[str, tuple[str, str]] = {}
    for entry in entries:
        name, json_file, image_root = parse_entry(entry)
        if not PathManager.isfile(json_file):
            raise RegistrationError(f"DATASETS.REGISTER: {name}: no annotation file {json_file}")
        if not PathManager.isdir(image_root):
            raise RegistrationError(f"DATASETS.REGISTER: {name}: no image folder {image_root}")
        paths = accepted.get(name)
        if paths is None and name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            # Only metadata that has its paths as plain values: those of prepared data sets would be
            # made just to be compared.
            plain = metadata.as_dict()
            paths = (plain.get("json_file"), plain.get("image_root"))
        if paths is not None and paths != (json_file, image_root):
            raise RegistrationError(
                f"DATASETS.REGISTER: {name} is taken by a data set with other paths "
                f"({paths[0]}, {paths[1]}); choose another name."
            )
        accepted[name] = (json_file, image_root)
    for name, (json_file, image_root) in accepted.items():
        if name not in DatasetCatalog:
            # With the annotations' ids, which Detectron2's own registration leaves out, so that
            # messages can name them.
            load = partial(load_coco, json_file, image_root, name, ["id"])
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(
                json_file=json_file, image_root=image_root, evaluator_type="coco"
            )
    return list(accepted)


def _expand(path: str) -> str:
    return os.path.expanduser(path)
