"""Default boxes of SSD (Liu et al. 2016, Sec. 2.2)."""

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator


class DefaultBoxGenerator(DefaultAnchorGenerator):
    """Default boxes of SSD (Liu et al. 2016, Sec. 2.2), in the interface of Detectron2's anchors.

    ``sizes`` has, for each level, its own scale and that of the next one, in pixels. There are two
    squares, of the scale and of the geometric mean of both, and for each of the level's
    ``aspect_ratios`` a wide and a high box with the area of the first.
    """

    def generate_cell_anchors(
        self, sizes: Sequence[float], aspect_ratios: Sequence[float]
    ) -> torch.Tensor:
        """(2 + 2 x ratios, 4) boxes of one location around the origin, XYXY."""
        size, next_size = sizes
        between = math.sqrt(size * next_size)
        shapes = [(size, size), (between, between)]
        for ratio in aspect_ratios:
            longer, shorter = size * math.sqrt(ratio), size / math.sqrt(ratio)
            shapes += [(longer, shorter), (shorter, longer)]
        shapes = torch.tensor(shapes)
        return torch.cat([-shapes / 2, shapes / 2], dim=1)


def default_boxes(
    strides: Sequence[int],
    image_size: float,
    first_scale: float,
    min_scale: float,
    max_scale: float,
    aspect_ratios: Sequence[Sequence[float]],
) -> DefaultBoxGenerator:
    """The default boxes of each location of each level.

    Scales are shares of the image: ``first_scale`` on the first level, which SSD sets apart (Sec.
    3.1), and on the m others evenly from ``min_scale`` to ``max_scale`` (Eq. 4).

    Args:
        strides: of each level, in pixels; at least three.
        image_size: side of the images that the detector is for, in pixels.
        first_scale, min_scale, max_scale: see above.
        aspect_ratios: of each level, or of all of them; without 1, and without the inverse of each.

    Returns:
        generator: features per level -> Boxes per level, row by row.

    Raises:
        ValueError: fewer levels, or not as many lists of aspect ratios.
    """
    if len(strides) < 3:
        raise ValueError(f"expected three levels or more, got strides {list(strides)}")
    if len(aspect_ratios) not in (1, len(strides)):
        raise ValueError(
            f"expected aspect ratios for each of {len(strides)} levels or for all of them, got "
            f"{len(aspect_ratios)} lists"
        )
    step = (max_scale - min_scale) / (len(strides) - 2)
    # One more than levels: the last one has a next scale too.
    scales = [first_scale, *(min_scale + step * index for index in range(len(strides)))]
    sizes = [image_size * scale for scale in scales]
    return DefaultBoxGenerator(
        sizes=list(zip(sizes[:-1], sizes[1:], strict=True)),
        aspect_ratios=[list(ratios) for ratios in aspect_ratios],
        strides=list(strides),
        offset=0.5,
    )
