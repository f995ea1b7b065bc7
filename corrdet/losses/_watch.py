"""Says that a training has no positives: the losses of none are 0, which looks like success."""

import warnings

import torch

# Batches without a positive, one after the other, after which it is said.
PATIENCE = 100
NO_POSITIVES = (
    f"no sample of the last {PATIENCE} batches is a positive: localization, ranking and coupling "
    "losses are 0, and nothing is learned of the objects. Look at the annotations (are there any, "
    "boxes as XYXY in pixels of the resized image, classes from 0 to the number of classes - 1), "
    "at the sizes of anchors beside those of objects, and at the IoU from which on they match"
)


class PositivesWatch:
    """Counts the batches of a training that have no positive, and warns once."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._is_over = False
        self._iteration: int | None = None

    def see(self, num_positives: int, iteration: int | None = None) -> None:
        """
        Args:
            num_positives: of the next batch.
            iteration: of the training, where it is known: several calls, as of the layers of a
                decoder, may be of one batch.
        """
        if self._is_over or torch.compiler.is_compiling():
            return
        is_new = iteration is None or iteration != self._iteration
        self._iteration = iteration
        self._in_a_row = 0 if num_positives else self._in_a_row + is_new
        if self._in_a_row >= PATIENCE:
            self._is_over = True
            warnings.warn(NO_POSITIVES, stacklevel=2)
