"""Image files: what their headers say, and their pixels as 8 bits a channel, turned or not."""

from dataclasses import dataclass

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
UPRIGHT = (None, 0, 1)
EIGHT_BIT_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels.

    Attributes:
        size: width and height of the pixels as they are stored.
        orientation: EXIF's, None without one.
        is_deep: more than 8 bits a channel, which Pillow would cut off.
    """

    size: tuple[int, int]
    orientation: int | None
    is_deep: bool

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height after the turn that EXIF asks for."""
        return self.size[::-1] if self.orientation in TURNED else self.size

    def is_stated_unturned(self, width: int, height: int) -> bool:
        """Whether a data set's boxes are those of the stored pixels, by the size that it states."""
        return self.orientation in TURNED and self.shown_size != (width, height) == self.size

    def is_read_otherwise(self, width: int, height: int) -> bool:
        """Whether Detectron2 would read another image than :func:`read_image`, by that size."""
        return self.is_deep or self.is_stated_unturned(width, height)


def read_header(file_name: str, stated: tuple[int, int] | None = None) -> Header:
    """Without decoding pixels, with one exception: a PNG of another size than stated.

    Raises:
        Exception: of many types, as Pillow has them, for files that are no images.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        # To find EXIF in a PNG, Pillow decodes it if there is none at its beginning.
        is_cheap = image.format != "PNG" or "exif" in image.info or image.size != stated
        orientation = _orientation(image) if is_cheap else None
        return Header(image.size, orientation, _is_deep(image))


def read_image(
    file_name: str, format: str | None = None, stated: tuple[int, int] | None = None
) -> np.ndarray:
    """As Detectron2's ``read_image``, which gives 16-bit images as white and turns all by EXIF.

    Args:
        file_name: a path, or an address that Detectron2 can read.
        format: of the result, such as "BGR".
        stated: width and height that the data set states. An image whose stored pixels have this
            size, and whose turned ones have not, is not turned.

    Returns:
        (H, W, C); 16-bit values are divided by 257. 32-bit ones are taken for 8-bit or 16-bit ones
        where all of an image are in that range (floating-point ones for 0..1 or 0..255), and
        otherwise scaled from the image's own least and greatest to 0..255.
    """
    with PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        header = Header(image.size, _orientation(image), _is_deep(image))
        if stated is None or not header.is_stated_unturned(*stated):
            image = detection_utils._apply_exif_orientation(image)
        if header.is_deep and format in EIGHT_BIT_FORMATS:
            image = Image.fromarray(to_eight_bits(np.asarray(image), image.mode))
        return detection_utils.convert_PIL_to_numpy(image, format)


def to_eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8 of the pixels of a deep image; see :func:`read_image`.

    Args:
        values: (H, W).
        mode: Pillow's: I;16 and its kin, I or F.
    """
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    if mode.startswith("I;16"):
        values = values / 257
    elif mode == "F" and 0 <= low and high <= 1:
        values = values * 255
    elif 0 <= low and high <= 255:
        pass
    elif mode == "I" and 0 <= low and high <= 65535:
        values = values / 257
    else:
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # damaged EXIF, which Detectron2 passes over as well
        return None


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")
