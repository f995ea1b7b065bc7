"""Registration of data sets that are made on first use.

Detectron2 keeps two catalogs: functions that load annotations, and metadata such as ``json_file``,
which ``COCOEvaluator`` reads. Both are plain values fixed at registration there. Here a data set
may not exist yet at that time and its place depends on an environment variable, so both are found
out when asked for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from corrdet.data.coco import load_coco


class PreparedMetadata(Metadata):
    """Metadata whose ``json_file`` and ``image_root`` make sure that the data set is there."""

    # Slots keep these two out of what Metadata.as_dict() tells.
    __slots__ = ("_prepare", "_split")

    def __init__(self, name: str, prepare: Callable[[], Path], split: str, **values) -> None:
        super().__init__(name=name, **values)
        self._prepare = prepare
        self._split = split

    @property
    def json_file(self) -> str:
        return str(self._prepare() / "annotations" / f"{self._split}.json")

    @property
    def image_root(self) -> str:
        return str(self._prepare() / self._split)


def register_prepared(
    name: str, split: str, prepare: Callable[[], Path], classes: Sequence[str]
) -> None:
    """Register a COCO-format data set that ``prepare`` makes; doing it again changes nothing.

    Args:
        name: name in the catalogs.
        split: annotations are in ``annotations/<split>.json``, images in ``<split>/``.
        prepare: returns the folder, made if need be. Called at every load: it must be quick then.
        classes: category names, in the order of the category ids 1..len(classes).
    """
    if name in DatasetCatalog:
        return
    metadata = PreparedMetadata(
        name,
        prepare,
        split,
        evaluator_type="coco",
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
    )
    MetadataCatalog[name] = metadata

    def load() -> list[dict]:
        root = prepare()
        return load_coco(str(root / "annotations" / f"{split}.json"), str(root / split), name)

    DatasetCatalog.register(name, load)
