"""Files in COCO's format, each parsed once and handed on."""

import contextlib
import gc
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import IO, Any
from weakref import WeakValueDictionary

from pycocotools.coco import COCO

from corrdet.files import reading

from .arrays import Detections, GroundTruth, detections_from_coco, ground_truth_from_coco
from .columns import check_annotated_masks
from .completing import completed, results_with_whole_ids, with_whole_ids
from .foreign import FORMATS, as_coco_rows
from .naming import has_file_name
from .polygons import pack
from .rules import CocoFileError

Opener = Callable[[Any, Any], IO]
# How a file that is compressed by gzip begins.
GZIP = b"\x1f\x8b"


class CocoFile:
    """An annotation file that has been parsed. What is derived from it is made when asked for.

    Attributes:
        path: of the file.
        content: of the file, which nobody changes; its ids are whole numbers or texts where they
            can be, its polygons arrays, see :func:`.polygons.pack`.
    """

    def __init__(self, path: str, content: Any):
        self.path, self.content = path, content
        self._ground_truths: dict[str, GroundTruth] = {}
        self._completed: dict | None = None

    @property
    def has_annotations(self) -> bool:
        """The files of COCO's test sets have none."""
        return "annotations" in self.content

    @property
    def completed(self) -> dict:
        """The content with what annotations leave out: see :func:`.completing.completed`."""
        if self._completed is None:
            self._completed = completed(self.content)
        return self._completed

    def ground_truth(self, iou_type: str = "bbox") -> GroundTruth:
        """The objects as arrays, made once: see :func:`ground_truth_from_coco`."""
        if iou_type not in self._ground_truths:
            self._ground_truths[iou_type] = ground_truth_from_coco(
                self.completed if isinstance(self.content, dict) else self.content,
                iou_type,
                source=self.path,
            )
        return self._ground_truths[iou_type]

    def check(self, iou_type: str) -> None:
        """Whether detections can be compared with the objects: see :func:`ground_truth_from_coco`.

        Raises:
            CocoFileError: they cannot.
        """
        if iou_type != "segm" or iou_type in self._ground_truths:
            self.ground_truth(iou_type)
        else:  # encoding masks takes long, and is not needed yet
            objects = self.ground_truth()
            sizes = objects.sizes[objects.images]
            check_annotated_masks(self.completed["annotations"], sizes, "annotations", self.path)

    def api(self) -> COCO:
        """pycocotools' object of this content, completed."""
        api = COCO()
        api.dataset = dict(self.completed)
        if self.has_annotations:  # copies, as evaluating writes into them
            api.dataset["annotations"] = [dict(row) for row in self.completed["annotations"]]
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        return api


class _Kept:
    """Files that need not be parsed again."""

    def __init__(self) -> None:
        self.latest: CocoFile | None = None
        self.in_use: WeakValueDictionary[str, CocoFile] = WeakValueDictionary()


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """In the block, :func:`read` parses a file once: who reads it next gets the same object.

    That holds for the file that was read last, and for others as long as somebody has them, so that
    no more is kept than is needed. A block in a block is part of it.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set(_Kept())
    try:
        yield
    finally:
        _kept.reset(token)


def read(path: str | os.PathLike, opener: Opener | None = None) -> CocoFile:
    """Parse an annotation file; see :func:`read_once`.

    Args:
        path: the file.
        opener: how to open it, such as a function that downloads it first; ``open`` if not given.

    Raises:
        CocoFileError: not JSON. What it says is checked when it is used.
        ReadError: the file cannot be read.
    """
    path = os.fspath(path)
    kept = _kept.get()
    file = None if kept is None else kept.in_use.get(path)
    if file is None:
        file = CocoFile(path, with_whole_ids(_parse(path, opener)))
    if kept is not None:
        kept.latest = kept.in_use[path] = file
    return file


def read_ground_truth(
    path: str | os.PathLike, iou_type: str = "bbox", *, skip_bad: bool = False
) -> GroundTruth:
    """Read an annotation file as arrays.

    Args:
        path: the file; it may be compressed by gzip.
        iou_type: "bbox" or "segm".
        skip_bad: leave out annotations that cannot be used, and note how many.

    Raises:
        CocoFileError: not JSON, or not in the format, see :func:`ground_truth_from_coco`.
        ReadError: the file cannot be read.
    """
    file = read(path)
    if not skip_bad:
        return file.ground_truth(iou_type)
    return ground_truth_from_coco(file.content, iou_type, source=file.path, skip_bad=True)


def read_detections(
    path: str | os.PathLike,
    ground_truth: GroundTruth,
    iou_type: str = "bbox",
    *,
    form: str = "auto",
    skip_bad: bool = False,
) -> Detections:
    """Read a results file as arrays.

    Args:
        path: the file; it may be compressed by gzip.
        ground_truth: of the same data set.
        iou_type: "bbox" or "segm".
        form: see :func:`detections_from`.
        skip_bad: leave out rows that cannot be used, and note how many.

    Raises:
        CocoFileError: not JSON, or not in the format, see :func:`detections_from_coco`.
        ReadError: the file cannot be read.
    """
    with without_collecting():
        content = _parse(path)
        return detections_from(
            content, ground_truth, iou_type, form=form, source=str(path), skip_bad=skip_bad
        )


def detections_from(
    content: Any,
    ground_truth: GroundTruth,
    iou_type: str = "bbox",
    *,
    form: str = "auto",
    source: str = "the detections",
    skip_bad: bool = False,
) -> Detections:
    """Arrays of the content of a results file, whichever framework wrote it.

    Args:
        content: COCO's rows, or what :mod:`~corrdet.coco.foreign` recognises.
        ground_truth: of the same data set.
        iou_type: "bbox" or "segm".
        form: "auto"; "coco" for COCO's rows and nothing else; "xyxy" where boxes of flat rows are
            x1, y1, x2, y2.
        source: where it is from, for messages.
        skip_bad: leave out rows that cannot be used, and note how many.

    Raises:
        CocoFileError: not recognised, or see :func:`detections_from_coco`.
        ValueError: another ``form``.
    """
    if form not in FORMATS:
        raise ValueError(f"expected a form of {', '.join(FORMATS)}, got {form!r}")
    content = results_with_whole_ids(content)
    names_files = isinstance(content, list) and content and has_file_name(content[0])
    if form == "coco" or (form == "auto" and not names_files):
        # Most files are in COCO's form, and a second look takes its time.
        try:
            return detections_from_coco(
                content,
                ground_truth,
                iou_type,
                source=source,
                leave_out_other_classes=form == "coco",
                skip_bad=skip_bad and form == "coco",
            )
        except CocoFileError:
            if form == "coco":
                raise
    rows, notes = as_coco_rows(content, ground_truth, form, source=source)
    found = detections_from_coco(
        rows,
        ground_truth,
        iou_type,
        source=source,
        leave_out_other_classes=True,
        skip_bad=skip_bad,
    )
    return replace(found, notes=(*notes, *found.notes))


@contextmanager
def without_collecting() -> Iterator[None]:
    """In the block, no cycles are looked for, which takes long among millions of new objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse(path: str | os.PathLike, opener: Opener | None = None) -> Any:
    try:
        with without_collecting():
            return _loaded(_bytes(path, opener))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CocoFileError(f"{path}: expected JSON, compressed by gzip: {error}") from error
    except UnicodeDecodeError as error:
        raise CocoFileError(f"{path}: expected JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise CocoFileError(f"{path}: expected a COCO file, got lists in lists: {error}") from error
    except ValueError as error:
        raise CocoFileError(f"{path}: expected JSON, it may be incomplete: {error}") from error


def _bytes(path: str | os.PathLike, opener: Opener | None) -> bytes:
    with reading(), (opener or open)(path, "rb") as file:
        data = file.read()
    return gzip.decompress(data) if data[:2] == GZIP else data


def _loaded(data: bytes) -> Any:
    """JSON; lists of results by orjson where it is installed, which takes half of the time."""
    # Files from Windows may begin with a mark of their encoding.
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[:1] == b"[":  # others have polygons, which are to become arrays one by one
        with contextlib.suppress(ImportError, ValueError):
            import orjson

            return orjson.loads(data)
    # Also what orjson refuses, such as NaN, halves of pairs of characters, and its messages.
    text = data.decode("utf-8")
    del data  # half a gigabyte
    return json.loads(text, object_hook=pack)
