"""Priors of detectors with one of them per location."""

from collections.abc import Sequence

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator


def square_priors(
    strides: Sequence[int], sides: Sequence[float], offset: float = 0.5
) -> DefaultAnchorGenerator:
    """One square around each location of each level.

    FCOS has locations rather than boxes: sides equal to the strides, as its matching and
    Detectron2's ``Box2BoxTransformLinear`` expect. FoveaBox: the basic scales of its levels, as
    :class:`FoveaTransform` expects. ATSS and PAA: anchors of 8 strides.

    Args:
        strides: of each level, in pixels.
        sides: of the squares of each level, in pixels.
        offset: where in its cell a location is, in strides: 0.5 is the middle.

    Returns:
        Detectron2's generator: features per level -> Boxes per level, row by row.

    Raises:
        ValueError: not as many sides as strides.
    """
    if len(sides) != len(strides):
        raise ValueError(f"expected a side for each of {len(strides)} strides, got {len(sides)}")
    return DefaultAnchorGenerator(
        sizes=[[side] for side in sides],
        aspect_ratios=[1.0],
        strides=list(strides),
        offset=offset,
    )
