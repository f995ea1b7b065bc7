"""The classes of a data set in the order of another's: what is trained is what is evaluated.

A model's outputs are numbers. Which class a number is, the metadata of each data set say; a test
set whose file has the same classes in another order would be evaluated as if all were confused.
"""

import logging
from collections.abc import Callable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from corrdet.coco import AnnotationError
from corrdet.coco.messages import MAX_LISTED

logger = logging.getLogger(__name__)

# Metadata that have a value for each class.
BY_CLASS = ("thing_classes", "thing_colors")
IDS = "thing_dataset_id_to_contiguous_id"
CLASS_KEYS = (*BY_CLASS, IDS)


def follow_classes(
    name: str, dicts: list[dict], leader: str, wanted: Sequence[str] | None
) -> list[dict]:
    """Bring a loaded data set's classes into the order of ``wanted``, also for later loads.

    Args:
        name: of the data set.
        dicts: as they were loaded; not changed.
        leader: the data set whose order counts, for messages.
        wanted: its classes; None where they are not known, and nothing is compared.

    Returns:
        dicts with category ids in that order. The metadata and the catalog's function are replaced.

    Raises:
        AnnotationError: the classes are others, by name.
    """
    classes = MetadataCatalog.get(name).get("thing_classes")
    if wanted is None or classes is None or list(classes) == list(wanted):
        return dicts
    if sorted(map(str, classes)) != sorted(map(str, wanted)) or len(set(classes)) < len(classes):
        missing = [c for c in wanted if c not in classes]
        unknown = [c for c in classes if c not in wanted]
        raise AnnotationError(
            f"data set {name!r}: expected the {len(wanted)} classes of {leader!r}, by name "
            f"({_listed(wanted)}), got {len(classes)} ({_listed(classes)}); missing: "
            f"{_listed(missing) or 'none'}, unknown: {_listed(unknown) or 'none'}. Give the "
            "annotation files the same categories."
        )
    logger.warning(
        f"{name}: its classes are in another order ({_listed(classes)}) than those of {leader} "
        f"({_listed(wanted)}); they are taken in the order of {leader}"
    )
    loader = ReorderedLoader(name, DatasetCatalog[name], wanted)
    loader.register()
    return loader.reorder(dicts)


class ReorderedLoader:
    """A function of the catalog: another one, with classes in another order.

    Args:
        name: of the data set, with the metadata that ``load`` has or sets.
        load: what is in the catalog.
        wanted: the classes in their new order.
    """

    def __init__(self, name: str, load: Callable[[], list[dict]], wanted: Sequence[str]) -> None:
        self.name, self.load, self.wanted = name, load, list(wanted)
        metadata = MetadataCatalog.get(name)
        self.before = {key: metadata.get(key) for key in CLASS_KEYS}
        classes = self.before["thing_classes"]
        self._new = [list(wanted).index(c) for c in classes]  # by old number
        self._after = dict(self.before)
        for key in BY_CLASS:
            values = self.before[key]
            if values is not None:
                self._after[key] = [
                    value for _, value in sorted(zip(self._new, values, strict=True))
                ]
        if self.before[IDS] is not None:
            self._after[IDS] = {key: self._new[old] for key, old in self.before[IDS].items()}

    def __call__(self, load: Callable[[], list[dict]] | None = None) -> list[dict]:
        """``load``: in place of the function of the catalog."""
        # Functions that set metadata set those of their file, and Detectron2 takes no others.
        put_metadata(self.name, self.before)
        try:
            return self.reorder((load or self.load)())
        finally:
            put_metadata(self.name, self._after)

    def register(self) -> None:
        """Put it in the place of ``load``, with the metadata of the new order."""
        DatasetCatalog.remove(self.name)
        DatasetCatalog.register(self.name, self)
        put_metadata(self.name, self._after)

    def reorder(self, dicts: list[dict]) -> list[dict]:
        """The dicts with new category ids."""
        new = dict(enumerate(self._new))  # others are left to the checks
        reordered = []
        for record in dicts:
            if record.get("annotations"):
                objects = [
                    {**a, "category_id": new.get(a.get("category_id"), a.get("category_id"))}
                    for a in record["annotations"]
                ]
                record = {**record, "annotations": objects}
            reordered.append(record)
        return reordered


def put_metadata(name: str, values: dict) -> None:
    """Replace metadata of a data set; None removes them."""
    metadata = MetadataCatalog.get(name)
    for key, value in values.items():
        # Metadata refuse changes, so that nobody is surprised; here nobody is.
        metadata.__dict__.pop(key, None)
        if value is not None:
            setattr(metadata, key, value)


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(map(str, classes[:MAX_LISTED])) + (
        ", ..." if len(classes) > MAX_LISTED else ""
    )
