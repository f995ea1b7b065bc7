"""Checks of image files before training and evaluation: there, readable, of the stated size."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.logger import log_first_n
from tqdm import tqdm

from corrdet.coco import AnnotationError
from corrdet.coco.messages import MAX_LISTED, describe, listing
from corrdet.coco.rules import is_side, side_words
from corrdet.errors import CorrdetError

from .images import TURNED, UPRIGHT, Header, read_header, read_image
from .resizing import Step, nothing_left

logger = logging.getLogger(__name__)

# In dataset dicts: :func:`.images.read_image` is needed, Detectron2 would read another image.
OTHERWISE = "read_otherwise"

SKIP_ADVICE = (
    "Replace the file, or leave out images that cannot be read with DATASETS.SKIP_UNREADABLE True."
)


class ImageReadError(CorrdetError, OSError):
    """An image cannot be read."""


class ImageSizeError(CorrdetError, SizeMismatchError):
    """An image does not have the size that its data set states, or one that cannot be used."""


def check_images_exist(name: str, dataset_dicts: Sequence[dict]) -> None:
    """Look for every image file, without reading it; addresses such as s3://... are not checked.

    Raises:
        ImageReadError: files are missing; names the first ten and counts all.
    """
    bar = tqdm(
        dataset_dicts,
        desc=f"looking for the images of {name}",
        unit="image",
        disable=len(dataset_dicts) < 5000,
    )
    missing = [
        record["file_name"]
        for record in bar
        if "://" not in record["file_name"] and not os.path.isfile(record["file_name"])
    ]
    if missing:
        raise ImageReadError(
            f"{len(missing)} of the {len(dataset_dicts)} images of data set {name!r} are missing:\n"
            f"{listing(missing)}\n{SKIP_ADVICE}"
        )


def check_image_headers(
    name: str,
    dataset_dicts: list[dict],
    *,
    skip: bool = False,
    steps: Sequence[Sequence[Step]] = (),
) -> list[dict]:
    """Compare image files with what the data set says of them, by their headers.

    What is read otherwise than Detectron2 would is logged, once for all: images of more than 8
    bits, and images that are not turned by their EXIF orientation, as the stated size is that of
    the stored pixels.

    Args:
        name: of the data set, for messages.
        dataset_dicts: not changed; files at addresses such as s3://... are not looked at.
        skip: leave out images instead of raising, and log which. Those without a readable header
            stay, for who decodes them.
        steps: what will be done to their sizes, as :func:`.resizing.ways` has it.

    Returns:
        The checked list; images without a stated size have that of their file, and those that are
        read otherwise than by Detectron2 the key ``OTHERWISE``.

    Raises:
        ImageSizeError: an image has another size than stated, or no pixel of one of its sides
            would be left; names the first ten and counts all.
        ImageReadError: a header cannot be read.
        AnnotationError: a stated size is no whole number of pixels.
    """
    for record in dataset_dicts:
        for key in ("width", "height"):
            if key in record and not is_side(record[key]):
                raise AnnotationError(
                    f"data set {name!r}: image {record.get('file_name')}: expected "
                    f"{side_words(key)}, got {describe(record[key])}"
                )
    checked, problems, unreadable = [], [], []
    unturned, ambiguous, deep = [], [], []
    for record, header in zip(dataset_dicts, _headers(name, dataset_dicts), strict=True):
        file_name = record["file_name"]
        if isinstance(header, str):
            unreadable.append(f"{file_name}: {header}")
        elif header is not None:
            width, height = stated = _stated_size(record) or header.shown_size
            reason = _size_problem(header, stated, steps)
            if reason:
                problems.append(f"{file_name}: {reason}")
                continue
            if header.is_stated_unturned(width, height):
                unturned.append(file_name)
            elif header.orientation not in UPRIGHT and header.size == header.shown_size:
                ambiguous.append(file_name)
            if header.is_deep:
                deep.append(file_name)
            if _stated_size(record) is None:
                record = {**record, "width": width, "height": height}
            if header.is_read_otherwise(width, height):
                record = {**record, OTHERWISE: True}
        checked.append(record)
    if unreadable and not skip:
        raise ImageReadError(
            f"data set {name!r} has {len(unreadable)} image(s) that cannot be read:\n"
            f"{listing(unreadable)}\n{SKIP_ADVICE}"
        )
    if problems:
        found = f"{len(problems)} of {len(dataset_dicts)} images whose size does not do"
        if not skip:
            raise ImageSizeError(
                f"data set {name!r} has {found}:\n{listing(problems)}\nCorrect the sizes and boxes "
                "or the files, or leave these images out with DATASETS.SKIP_UNREADABLE True."
            )
        logger.warning(f"{name}: left out {found}:\n{listing(problems, limit=None)}")
    for files, words in (
        (unturned, "not turned by EXIF, as the data set states the size of the stored pixels"),
        (ambiguous, "mirrored or turned by EXIF, and their sizes cannot tell whether boxes are"),
        (deep, "of 16 or 32 bits a channel, which are scaled to 0..255"),
    ):
        if files:
            message = f"{name}: {len(files)} image(s) are {words}; the first is {files[0]}"
            # Not again at each evaluation.
            log_first_n(logging.WARNING, message, key="message", name=__name__)
    return checked


def read_otherwise(name: str, dataset_dicts: Sequence[dict]) -> list[str]:
    """The files of a data set that Detectron2 takes for other images than they are.

    It turns by EXIF what is stated to be as it is stored, and more than 8 bits are white.

    Args:
        name: of the data set, for a bar of progress.
        dataset_dicts: of images; without a readable header they are left to who reads them.
    """
    return [
        record["file_name"]
        for record, header in zip(dataset_dicts, _headers(name, dataset_dicts), strict=True)
        if isinstance(header, Header)
        and header.is_read_otherwise(*(_stated_size(record) or header.shown_size))
    ]


def _headers(name: str, dataset_dicts: Sequence[dict]) -> Iterator[Header | str | None]:
    """Headers, texts that say why there is none, and None where none was looked for."""

    def read(record: dict) -> Header | str | None:
        if "://" in record["file_name"]:
            return None
        try:
            return read_header(record["file_name"], _stated_size(record))
        except Exception as error:  # PIL raises many types
            return f"{type(error).__name__}: {error}"

    # Several at a time: handing one to a thread takes as long as reading its header.
    parts = [dataset_dicts[start : start + 50] for start in range(0, len(dataset_dicts), 50)]
    with ThreadPoolExecutor(8) as pool:
        headers = pool.map(lambda part: [read(record) for record in part], parts)
        yield from tqdm(
            itertools.chain.from_iterable(headers),
            total=len(dataset_dicts),
            desc=f"reading the headers of the images of {name}",
            unit="image",
            disable=len(dataset_dicts) < 5000,
        )


def _stated_size(record: dict) -> tuple[int, int] | None:
    return (record["width"], record["height"]) if {"width", "height"} <= record.keys() else None


def _size_problem(header: Header, stated: tuple[int, int], steps: Sequence) -> str:
    if stated not in (header.size, header.shown_size):
        turned = ""
        if header.orientation in TURNED:
            width, height = header.shown_size
            turned = f", turned by EXIF {width} x {height}"
        return (
            f"the data set says {stated[0]} x {stated[1]}, the file has {header.size[0]} x "
            f"{header.size[1]}{turned} (w x h)"
        )
    width, height = map(int, stated)
    found = (nothing_left((height, width), way) for way in steps)
    return next((f"{width} x {height} (w x h), {reason}" for reason in found if reason), "")


def check_readable(name: str, dataset_dicts: Sequence[dict]) -> None:
    """Decode every image.

    Raises:
        ImageReadError: some cannot be; names the first ten and counts all.
    """
    unreadable = _find_unreadable(name, dataset_dicts)
    if unreadable:
        raise ImageReadError(
            f"data set {name!r} has {len(unreadable)} image(s) that cannot be read:\n"
            f"{_list_unreadable(unreadable)}\n{SKIP_ADVICE}"
        )


def filter_unreadable(name: str, dataset_dicts: Sequence[dict], threads: int = 8) -> list[dict]:
    """Decode every image, drop those that cannot be, and log their names.

    Args:
        name: the data set's name, for the log.
        dataset_dicts: with ``file_name``; not changed.
        threads: how many images to decode at once.

    Returns:
        The readable ones, in order.

    Raises:
        ImageReadError: if none is left.
    """
    unreadable = _find_unreadable(name, dataset_dicts, threads)
    if not unreadable:
        return list(dataset_dicts)
    listing = _list_unreadable(unreadable, limit=None)
    if len(unreadable) == len(dataset_dicts):
        raise ImageReadError(
            f"none of the {len(dataset_dicts)} images of data set {name!r} can be read:\n"
            f"{_list_unreadable(unreadable)}"
        )
    logger.warning(
        f"{name}: left out {len(unreadable)} of {len(dataset_dicts)} images that cannot be read:\n"
        f"{listing}"
    )
    return [record for index, record in enumerate(dataset_dicts) if index not in unreadable]


def unreadable_reason(file_name: str, image_format: str | None = "BGR") -> str | None:
    """Why Detectron2 cannot read this image, or None if it can."""
    try:
        read_image(file_name, image_format)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        return f"{type(error).__name__}: {error}"
    return None


def _unreadable_reason_once(file_name: str) -> str | None:
    """:func:`unreadable_reason`; a test set is checked at each evaluation, and decoded once."""
    try:
        status = os.stat(file_name)
    except OSError:
        return unreadable_reason(file_name)
    return _unreadable_reason_of(file_name, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1_000_000)
def _unreadable_reason_of(file_name: str, _time: int, _size: int) -> str | None:
    return unreadable_reason(file_name)


def _find_unreadable(
    name: str, dataset_dicts: Sequence[dict], threads: int = 8
) -> dict[int, tuple[str, str]]:
    """Index -> (file name, reason)."""
    file_names = [record["file_name"] for record in dataset_dicts]
    unreadable = {}
    # Threads: PIL decodes without the interpreter's lock.
    with ThreadPoolExecutor(threads) as pool:
        reasons = pool.map(_unreadable_reason_once, file_names)
        bar = tqdm(reasons, total=len(file_names), desc=f"reading {name}", unit="image")
        for index, reason in enumerate(bar):
            if reason is not None:
                unreadable[index] = (file_names[index], reason)
    return unreadable


def _list_unreadable(unreadable: dict[int, tuple[str, str]], limit: int | None = MAX_LISTED) -> str:
    problems = [f"{file_name}: {reason}" for file_name, reason in unreadable.values()]
    return listing(problems, limit=limit)
