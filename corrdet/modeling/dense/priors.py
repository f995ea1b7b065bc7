"""Priors: one square per location, and the sizes of objects that levels are for."""

from collections.abc import Sequence

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator


def square_priors(
    strides: Sequence[int],
    sides: Sequence[float],
    offset: float = 0.5,
    scales_per_octave: int = 1,
) -> DefaultAnchorGenerator:
    """Squares around each location of each level: one, or as many as divide an octave.

    Detectors of locations rather than boxes read the centres, and take the sides as the unit of
    their distances.

    Args:
        strides: of each level, in pixels.
        sides: of the squares of each level, the smallest one, in pixels.
        offset: where in its cell a location is, in strides: 0.5 is the middle.
        scales_per_octave: n squares of a location, of which the k-th has ``2 ** (k / n)`` times
            the side, k = 0 .. n - 1.

    Returns:
        Detectron2's generator: features per level -> Boxes per level, row by row.

    Raises:
        ValueError: not as many sides as strides.
    """
    if len(sides) != len(strides):
        raise ValueError(f"expected a side for each of {len(strides)} strides, got {len(sides)}")
    return DefaultAnchorGenerator(
        sizes=[
            [side * 2 ** (k / scales_per_octave) for k in range(scales_per_octave)]
            for side in sides
        ],
        aspect_ratios=[1.0],
        strides=list(strides),
        offset=offset,
    )


def open_ranges(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ranges of levels, of which the first one starts at 0 and the last one has no end."""
    lows, highs = (list(bounds) for bounds in zip(*ranges, strict=True))
    lows[0], highs[-1] = 0.0, float("inf")
    return list(zip(lows, highs, strict=True))
