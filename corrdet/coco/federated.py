"""Federated annotations, as of LVIS: of each image only some classes were looked for.

``neg_category_ids`` of an image are classes that are known to be absent, objects of
``not_exhaustive_category_ids`` are not all annotated; of any other class that has no object in the
image nothing is known (Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation").
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .messages import describe
from .rules import CocoFileError, is_id

KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
# How many images of the training set a class is in: below 10, below 100, more.
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class Federated:
    """What is known of which classes in which images, of I images and C categories.

    Groups are numbered category x I + image, ascending.

    Attributes:
        absent: groups that are known to have no object.
        incomplete: groups of which some objects are not annotated.
        frequencies: of the C categories, r, c or f; empty where the file says nothing.
    """

    absent: np.ndarray = field(repr=False)
    incomplete: np.ndarray = field(repr=False)
    frequencies: list[str] = field(repr=False)


def federated_from(
    images: Sequence[dict],
    categories: Sequence[dict],
    category_ids: Sequence[Hashable],
    source: str,
) -> Federated | None:
    """What the images of a file say of their classes; None where it is not federated.

    Args:
        images: rows, in the order of ``GroundTruth.image_ids``.
        categories: rows, in the order of ``category_ids``.
        category_ids: of the categories.
        source: for messages.

    Raises:
        CocoFileError: a list of classes is none.
    """
    if not any(key in image for image in images for key in KEYS):
        return None
    rows = {identity: row for row, identity in enumerate(category_ids)}
    groups: dict[str, list[int]] = {key: [] for key in KEYS}
    for index, image in enumerate(images):
        for key in KEYS:
            listed = image.get(key, [])
            if not isinstance(listed, list) or not all(map(is_id, listed)):
                raise CocoFileError(
                    f"{source}: image {image['id']!r}: expected a list of category ids as {key}, "
                    f"got {describe(listed)}"
                )
            # Of classes that the file does not have, nothing is asked.
            known = [rows[identity] for identity in listed if identity in rows]
            groups[key] += [row * len(images) + index for row in known]
    return Federated(
        absent=np.unique(np.array(groups[KEYS[0]], dtype=np.int64)),
        incomplete=np.unique(np.array(groups[KEYS[1]], dtype=np.int64)),
        frequencies=[
            row["frequency"] if row.get("frequency") in (*FREQUENCIES,) else ""
            for row in categories
        ],
    )
