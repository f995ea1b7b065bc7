"""Hugging Face's DETRs with corrdet's losses: RT-DETR (v2), D-FINE, Deformable DETR, DETR."""

from typing import TypeVar

from transformers import PreTrainedModel

from corrdet.losses import Criterion

from .loss import CriterionLoss

__all__ = ["CriterionLoss", "use_criterion"]

Model = TypeVar("Model", bound=PreTrainedModel)


def use_criterion(model: Model, criterion: Criterion) -> Model:
    """Train a DETR of transformers with the losses of a Criterion, also by its Trainer.

    They take the place of its losses of classes (varifocal, focal, cross entropy) and of GIoU, in
    each decoder layer, with the weights of its config. What else it trains, the L1 distance of
    boxes, corners, and all matching, stays transformers'. Boxes are in units of the image, where
    IoUs are the same; deltas are centre, width and height.

    Args:
        model: of a class whose loss is made as that of those above, changed in place; all have a
            sigmoid, but DETR a softmax.
        criterion: sums over samples are divided by what transformers divides by. Losses that keep
            something from step to step do so of all layers together.

    Returns:
        the model, of which the Criterion is a part.

    Raises:
        TypeError: a model whose loss is made in another way.
    """
    before = model.loss_function
    function = before.function if isinstance(before, CriterionLoss) else before
    model.loss_function = CriterionLoss(function, criterion)
    model.criterion = criterion  # a module of the model's: it moves with it, and is saved
    return model
