"""The images of a data set in a form that processes share: parsed by one, held once a machine.

Dataset dicts of a million objects are a gigabyte of small Python objects, which every process would
have for itself, and every worker of a loader as soon as it touches them. Here they are one piece of
memory, of which a dict is made when it is asked for. With several processes on a machine the first
one fills a file, and all map it.
"""

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch.distributed as dist
import torch.utils.data as torchdata
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from corrdet.coco.polygons import is_packed
from corrdet.coco.reading import without_collecting
from corrdet.errors import CorrdetError, WriteError
from corrdet.files import remove_dead, temporary_file

from .classes import CLASS_KEYS, ReorderedLoader, put_metadata

T = TypeVar("T")
FILE_NAME = "corrdet-images"


class Records(torchdata.Dataset, Sequence):
    """Dataset dicts, of which each is made anew when it is asked for.

    Polygons that are float64 arrays are so again; nobody else has them.

    Attributes:
        extra: what was given with them.
    """

    def __init__(self, buffer: Any, ends: np.ndarray, extra: Any = None) -> None:
        """
        Args:
            buffer: the pickled records, one behind the other.
            ends: (n,) where each ends.
            extra: anything.
        """
        self._buffer, self._ends, self.extra = buffer, ends, extra

    @classmethod
    def of(cls, dicts: Iterable[dict], extra: Any = None) -> "Records":
        """In the memory of this process, which processes forked from it share."""
        file = io.BytesIO()
        ends = _write(file, dicts)
        return cls(file.getbuffer(), ends, extra)

    @classmethod
    def mapped(cls, path: str) -> "Records":
        """What :func:`write_records` has written; the file may be removed then."""
        with open(path, "rb") as file:
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = int.from_bytes(buffer[-8:], "little")
        ends, extra = pickle.loads(buffer[begin:-8])
        return cls(buffer, ends, extra)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        index = range(len(self))[index]
        begin = int(self._ends[index - 1]) if index else 0
        return _unpacked(pickle.loads(self._buffer[begin : int(self._ends[index])]))

    def __iter__(self) -> Iterator[dict]:
        return map(self.__getitem__, range(len(self)))

    def __reduce__(self):  # to workers that are spawned, not forked
        return type(self), (bytes(self._buffer), self._ends, self.extra)


def write_records(file: IO[bytes], dicts: Iterable[dict], extra: Any = None) -> None:
    """Write what :meth:`Records.mapped` reads; the dicts are not changed."""
    ends = _write(file, dicts)
    begin = file.tell()
    file.write(pickle.dumps((ends, extra), protocol=-1) + begin.to_bytes(8, "little"))


def _write(file: IO[bytes], dicts: Iterable[dict]) -> np.ndarray:
    ends = []
    end = 0
    with without_collecting():
        for record in dicts:
            end += file.write(pickle.dumps(_packed(record), protocol=-1))
            ends.append(end)
    return np.array(ends, dtype=np.int64)


class _Bytes(tuple):
    """The coordinates of the polygons of a mask; bytes are pickled ten times as fast as arrays."""


def _packed(record: dict) -> dict:
    annotations = record.get("annotations")
    if not isinstance(annotations, list):
        return record
    packed = [
        {**a, "segmentation": _Bytes(p.tobytes() for p in a["segmentation"])}
        if isinstance(a, dict) and is_packed(a.get("segmentation"))
        else a
        for a in annotations
    ]
    return {**record, "annotations": packed}


def _unpacked(record: dict) -> dict:
    annotations = record.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else ():
        mask = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if type(mask) is _Bytes:
            # Copies, as augmentations write into them.
            annotation["segmentation"] = [np.frombuffer(part).copy() for part in mask]
    return record


# ---- Several processes.


def by_one_process(function: Callable[[], T], names: Sequence[str]) -> T:
    """What a function returns that one process of each machine calls, in all processes.

    Errors are raised in all, too. What loading data sets leaves in Detectron2's catalogs is put
    into those of the others. All processes call it.

    Args:
        function: its result can be pickled, and is small.
        names: of the data sets that it loads.
    """
    if comm.get_world_size() == 1:
        return function()
    outcome, own_error = None, None
    if _leader() == comm.get_rank():
        try:
            outcome = function(), None, _catalogs(names)
        except Exception as error:
            outcome, own_error = (None, _sendable(error), {}), error
    outcomes = comm.all_gather(outcome)
    if own_error is not None:
        raise own_error
    for other in outcomes:
        if other is not None and other[1] is not None:
            raise other[1]
    result, _, catalogs = outcomes[_leader()]
    if _leader() != comm.get_rank():
        _put_catalogs(catalogs)
    return result


def _leader() -> int:
    """The rank that loads for this process: the first of its machine, where machines are known."""
    group = comm._LOCAL_PROCESS_GROUP
    return comm.get_rank() if group is None else dist.get_process_group_ranks(group)[0]


def share(make: Callable[[], tuple[Iterable[dict], Any]], names: Sequence[str]) -> Records:
    """Records that one process of each machine makes, mapped by all. All processes call it.

    Args:
        make: returns dataset dicts, and what goes with them.
        names: of the data sets that it loads.

    Raises:
        WriteError: there is no space in the folder of temporary files.
    """
    if comm.get_world_size() == 1:
        return Records.of(*make())
    with ExitStack() as own:
        path = by_one_process(lambda: _written(*make(), own), names)
        records = Records.mapped(path)
        comm.synchronize()
    return records


def _written(dicts: Iterable[dict], extra: Any, stack: ExitStack) -> str:
    """The path of a file of records, which is there until the stack is left."""
    folder = Path(tempfile.gettempdir())
    remove_dead(folder.glob(f".{FILE_NAME}.*.tmp"))
    try:
        file, path = temporary_file(folder / FILE_NAME, "wb", {})
        stack.callback(_remove, file, path)  # it is locked as long
        write_records(file, dicts, extra)
        file.flush()
    except OSError as error:
        raise WriteError(
            f"the images that the processes of a machine share were not written into {folder}: "
            f"{error.strerror}. The environment variable TMPDIR names another folder"
        ) from error
    return path


def _remove(file: IO[bytes], path: str) -> None:
    os.unlink(path)
    with suppress(OSError):  # of what a full disk has not taken
        file.close()


def _is_sendable(value: Any) -> bool:
    try:
        pickle.dumps(value)
        return True
    except Exception:  # of functions, open files, and so on
        return False


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = CorrdetError if isinstance(error, CorrdetError) else RuntimeError
        return kind(str(error))


def _catalogs(names: Sequence[str]) -> dict[str, tuple[dict, list[str] | None]]:
    """Metadata of data sets, and the order of classes where it was changed."""
    found = {}
    for name in names:
        values, wanted = MetadataCatalog.get(name).as_dict(), None
        loader = DatasetCatalog[name] if name in DatasetCatalog else None
        if isinstance(loader, ReorderedLoader):
            values, wanted = {**values, **loader.before}, loader.wanted
        found[name] = {k: v for k, v in values.items() if _is_sendable(v)}, wanted
    return found


def _put_catalogs(catalogs: dict[str, tuple[dict, list[str] | None]]) -> None:
    for name, (values, wanted) in catalogs.items():
        if name not in DatasetCatalog or isinstance(DatasetCatalog[name], ReorderedLoader):
            continue
        metadata = MetadataCatalog.get(name)
        for key, value in values.items():
            if value is not None and metadata.get(key) is None:
                setattr(metadata, key, value)
        if wanted is not None:
            put_metadata(name, {key: values.get(key) for key in CLASS_KEYS})
            ReorderedLoader(name, DatasetCatalog[name], wanted).register()
