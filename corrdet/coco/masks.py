"""Masks of COCO's format: what pycocotools would take without a word, or die of, is refused.

Its functions read run-length encodings and polygons unchecked. What is cut off, of another image
size or not finite gives it empty masks, wrong sizes or a crash.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils

from corrdet.errors import CorrdetError

from .messages import short
from .polygons import Outlines
from .rules import has_corners, is_number

# Digits of a compressed run length: five bits each, so this many are more than an image can have.
MAX_DIGITS = 7
# Polygons may reach out of their image, by as many of its sides at most.
MAX_REACH = 10
# Pixels of an image with masks: pycocotools counts them in 32 bits.
MAX_PIXELS = 2**31 - 1
# Pixels along the outlines of a polygon, for each of which pycocotools takes some 150 bytes.
MAX_OUTLINE = 2_000_000
# Bytes that are decoded at once.
CHUNK = 1 << 22


class MaskError(CorrdetError, ValueError):
    """A mask is not what it should be.

    Attributes:
        index: of the mask.
        reason: what was expected, and what came.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"mask {index}: {reason}")
        self.index, self.reason = index, reason


def check_encodings(masks: Sequence, sizes: np.ndarray) -> None:
    """Decode the run lengths of compressed masks, as far as it takes to see that they are complete.

    Args:
        masks: n objects with size and counts.
        sizes: (n, 2) width and height of their images; 0 where they are not known.

    Raises:
        MaskError: of the first mask that is not one, has another size than its image, or whose runs
            do not cover it.
    """
    start = 0
    while start < len(masks):
        stop, length = start, 0
        while stop < len(masks) and (stop == start or length < CHUNK):
            length += len(_check_form(stop, masks[stop], sizes[stop]))
            stop += 1
        _check_runs(start, masks[start:stop])
        start = stop


def _check_form(index: int, mask, image_size: Sequence[float] | np.ndarray) -> str | bytes:
    """The counts of a mask whose size and types are right."""
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        raise MaskError(index, f"expected a run-length encoding, got {short(mask)}")
    size, counts = mask["size"], mask["counts"]
    is_size = isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size))
    if not is_size:
        raise MaskError(index, f"expected a size of [height, width], got {short(size)}")
    if size[0] * size[1] > MAX_PIXELS:
        raise MaskError(
            index, f"expected a mask of at most {MAX_PIXELS} pixels, got one of {short(size)}"
        )
    if not isinstance(counts, str | bytes):
        raise MaskError(
            index,
            f"expected a compressed run-length encoding, its counts a text, got {short(counts)}",
        )
    width, height = map(int, image_size)
    if width and height and (size[0], size[1]) != (height, width):
        raise MaskError(
            index,
            f"expected a mask of [height, width] [{height}, {width}], as its image has, got "
            f"{list(size)}",
        )
    return counts


def _check_runs(start: int, masks: Sequence[dict]) -> None:
    """Whether the runs of each mask are complete, none is negative, and they cover its size."""
    texts = [mask["counts"] for mask in masks]
    try:
        texts = [text.encode("ascii") if isinstance(text, str) else text for text in texts]
    except UnicodeEncodeError as error:
        index = next(index for index, text in enumerate(texts) if text is error.object)
        reason = f"expected counts in ASCII, got {short(error.object)}"
        raise MaskError(start + index, reason) from None
    lengths = np.array([len(text) for text in texts])
    digits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    owners = np.repeat(np.arange(len(masks)), lengths)
    is_bad = np.zeros(len(masks), dtype=bool)
    is_bad[owners[(digits < 0) | (digits > 63)]] = True

    # A number ends with the first digit that does not announce another.
    is_last = (digits & 32) == 0
    ends = np.cumsum(lengths)[lengths > 0] - 1
    is_bad[owners[ends[~is_last[ends]]]] = True
    is_last[ends] = True
    numbers = np.cumsum(is_last) - is_last
    firsts = np.flatnonzero(np.concatenate([[True], is_last[:-1]])) if len(digits) else ends
    positions = np.arange(len(digits)) - firsts[numbers]
    is_bad[owners[positions >= MAX_DIGITS]] = True
    positions = np.minimum(positions, MAX_DIGITS)
    parts = (digits & 31) << (5 * positions)
    # The highest bit of the last digit is the sign, in two's complement.
    parts -= np.where(is_last & ((digits & 16) != 0), np.int64(32) << (5 * positions), 0)
    values = np.add.reduceat(parts, firsts) if len(digits) else np.zeros(0, np.int64)

    # From the fourth on, numbers are differences from the last but one.
    owners = owners[firsts]
    counts = np.bincount(owners, minlength=len(masks))
    ranks = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    chains = 3 * owners + np.where(ranks == 0, 0, 1 + ranks % 2)
    order = np.argsort(chains, kind="stable")
    sums = np.cumsum(values[order])
    chain_starts = np.searchsorted(chains[order], chains[order])
    runs = np.empty_like(values)
    runs[order] = sums - sums[chain_starts] + values[order[chain_starts]]
    is_bad[owners[runs < 0]] = True
    areas = np.array([mask["size"][0] * mask["size"][1] for mask in masks], dtype=np.float64)
    # In floating point, as nonsense may not fit into integers.
    is_bad |= np.bincount(owners, runs.astype(np.float64), minlength=len(masks)) != areas
    if is_bad.any():
        index = int(is_bad.argmax())
        raise MaskError(
            start + index,
            f"expected runs that cover {list(masks[index]['size'])} pixels, got other or "
            f"incomplete ones in counts: {short(masks[index]['counts'])}",
        )


def encode(index: int, segmentation, image_size: Sequence[float] | np.ndarray) -> dict:
    """The compressed run-length encoding of polygons, or of a mask encoded without compression.

    Args:
        index: for messages.
        segmentation: a list of polygons x1, y1, x2, y2, ...; or an object with size and counts.
        image_size: (2,) width and height.

    Raises:
        MaskError: neither of them, or of another size; or nothing to say how large the image is.
    """
    width, height = map(int, image_size)
    if not width or not height or width * height > MAX_PIXELS:
        raise MaskError(
            index,
            f"expected its image to have width and height, of at most {MAX_PIXELS} pixels, got "
            f"{short(width)} x {short(height)}",
        )
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        counts = segmentation["counts"]
        _check_form(index, {**segmentation, "counts": ""}, image_size)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise MaskError(index, f"expected counts of pixels, got {short(counts)}")
        if sum(counts) != width * height:
            raise MaskError(
                index, f"expected runs of {width * height} pixels in all, got {sum(counts)}"
            )
        return mask_utils.frPyObjects(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise MaskError(index, f"expected polygons or a mask, got {short(segmentation)}")
    for polygon in segmentation:
        check_polygon(index, polygon, MAX_REACH * max(width, height))
    return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))


def are_drawable(outlines: Outlines, image_sizes: np.ndarray) -> np.ndarray:
    """Which of n masks of polygons :func:`encode` takes, (n,) bool.

    Args:
        outlines: of the n masks.
        image_sizes: (n, 2) width and height of their images.
    """
    pixels = image_sizes.prod(axis=1)
    reach = MAX_REACH * image_sizes.max(axis=1)[outlines.masks, None]
    # NaN is in no range.
    is_near = ((outlines.low >= -reach) & (outlines.high <= reach)).all(axis=1)
    are_good = outlines.all(is_near & (outlines.lengths <= MAX_OUTLINE))
    return are_good & (pixels > 0) & (pixels <= MAX_PIXELS)


def check_polygon(index: int, polygon, reach: float) -> None:
    """Whether a polygon is x1, y1, x2, y2, ... of numbers within ``reach``.

    Raises:
        MaskError: of the mask ``index``.
    """
    is_list = isinstance(polygon, np.ndarray) or (
        isinstance(polygon, list | tuple) and all(map(is_number, polygon))
    )
    if not is_list or not has_corners(polygon):
        raise MaskError(
            index,
            f"expected polygons of at least three points x1, y1, x2, y2, ..., got {short(polygon)}",
        )
    # Negated, so that NaN is bad as well.
    corners = np.asarray(polygon, dtype=np.float64)
    if not np.all(np.abs(corners) <= reach):
        raise MaskError(
            index,
            f"expected finite coordinates of at most {reach:g}, {MAX_REACH} sides of its image, "
            f"got {short(polygon)}",
        )
    if len(corners) * reach <= MAX_OUTLINE:  # from one corner to the next it is twice that at most
        return
    corners = corners.reshape(-1, 2)
    if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > MAX_OUTLINE:
        raise MaskError(
            index, f"expected an outline of at most {MAX_OUTLINE} pixels, got {short(polygon)}"
        )


def for_masks(function, masks: Sequence[dict], columns: int) -> np.ndarray:
    """(n, columns) values of masks; pycocotools 2.0.11 cannot take more than 63 with numpy 2."""
    parts = [
        np.asarray(function(masks[start : start + 63]), dtype=np.float64).reshape(-1, columns)
        for start in range(0, len(masks), 63)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, columns))


def _is_side(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
