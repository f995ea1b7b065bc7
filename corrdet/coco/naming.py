"""Which image a row of results is of: by its id, or by the name of its file."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import PurePosixPath
from typing import Any

from .arrays import GroundTruth
from .messages import printable, short

FILE_KEYS = ("file_name", "filename", "image_name", "image_path", "path", "image")
Key = tuple[Any, Any]


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a path, as Windows or anybody else writes it."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def has_file_name(row: Any) -> bool:
    """Whether a row says which file it is of."""
    return isinstance(row, dict) and any(isinstance(row.get(key), str) for key in FILE_KEYS)


class FileNames:
    """Images by the ends of their paths: an absolute path finds the image below it."""

    def __init__(self, names: Iterable[str], *, stems: bool = False):
        """
        Args:
            names: of the images.
            stems: without what is behind their last dot.
        """
        self._stems = stems
        # An end of a path -> the index of its image; None where several end so.
        self._ends: dict[tuple[str, ...], int | None] = {}
        for index, name in enumerate(names):
            parts = self._parts(name)
            for start in range(len(parts)):
                end = parts[start:]
                self._ends[end] = index if self._ends.get(end, index) == index else None

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = parts_of(name)
        return (*parts[:-1], PurePosixPath(parts[-1]).stem) if self._stems and parts else parts

    def find(self, name: str) -> int | None:
        """The image whose path ends as ``name`` does, in as many parts as there are."""
        parts = self._parts(name)
        for start in range(len(parts)):
            index = self._ends.get(parts[start:])
            if index is not None:
                return index
        return None


def with_image_ids(rows: list[dict], gt: GroundTruth) -> tuple[list[dict], list[str]]:
    """Rows with the ids of the ground truth, and sentences on how many were matched by what.

    A way that tells the images of all rows goes before one that tells a few: numbers that are the
    stems of files may by chance be the ids of other images.
    """
    keys = [_key_of(row) for row in rows]
    distinct = list(dict.fromkeys(keys))
    ways = _ways(gt)
    found = {name: {key: way(key) for key in distinct} for name, way in ways.items()}
    chosen: dict[Key, tuple[str, int]] = {}
    whole = [name for name, images in found.items() if None not in images.values()]
    disagree = _disagreeing(found, keys) if "file name" in whole else 0
    order = ["file name"] if disagree else [*whole, *ways]
    for key in distinct:
        for name in order:
            image = found[name][key]
            if image is not None:
                chosen[key] = name, image
                break
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row, key in zip(rows, keys, strict=True):
        if key not in chosen:
            continue
        name, image = chosen[key]
        counts[name] += 1
        row["image_id"] = gt.image_ids[image]
        if name not in examples:
            came = key[1] if key[1] is not None and name.startswith("file") else key[0]
            examples[name] = f"{short(came)} is image {gt.image_ids[image]!r}"
    notes = []
    if set(counts) - {"image_id"}:
        told = ", ".join(f"{count} by {name} ({examples[name]})" for name, count in counts.items())
        notes.append(f"Rows matched with images: {printable(told)}.")
    if disagree:
        notes.append(
            f"In {disagree} rows, image_id and file name are of different images: the names are "
            "right where the framework numbers the images for itself."
        )
    return rows, notes


def _key_of(row: dict) -> Key:
    identity = row.get("image_id")
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        identity = None
    name = next((row[key] for key in FILE_KEYS if isinstance(row.get(key), str)), None)
    return identity, name


def _ways(gt: GroundTruth) -> dict[str, Callable[[Key], int | None]]:
    """Name -> image of a key; the surest first."""
    ids: dict[Hashable, int] = {identity: index for index, identity in enumerate(gt.image_ids)}
    as_text = {str(identity): index for index, identity in enumerate(gt.image_ids)}
    names, stems = FileNames(gt.file_names), FileNames(gt.file_names, stems=True)
    numbers: dict[int, int | None] = {}
    for index, name in enumerate(gt.file_names):
        stem = PurePosixPath(name.replace("\\", "/")).stem
        if stem.isascii() and stem.isdigit() and len(stem) < 20:
            numbers[int(stem)] = None if int(stem) in numbers else index

    def by_name(key: Key, table: FileNames) -> int | None:
        name = key[1] if key[1] is not None else key[0]
        return table.find(name) if isinstance(name, str) else None

    def by_stem(key: Key) -> int | None:
        if key[1] is None and isinstance(key[0], int):
            return numbers.get(key[0])
        return by_name(key, stems)

    return {
        "image_id": lambda key: None if key[0] is None else ids.get(key[0]),
        "number of image_id": lambda key: (
            None if key[0] is None else as_text.get(str(key[0]).strip())
        ),
        "file name": lambda key: by_name(key, names),
        "file stem": by_stem,
    }


def _disagreeing(found: dict[str, dict[Key, int | None]], keys: list[Key]) -> int:
    """Rows whose id is that of another image than their file name."""
    bad = {
        key
        for key, image in found["image_id"].items()
        if key[1] is not None and image is not None and image != found["file name"][key]
    }
    return sum(key in bad for key in keys)
