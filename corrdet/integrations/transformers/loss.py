"""transformers' own losses, of which some are those of a Criterion."""

from types import FunctionType
from typing import Any

from corrdet.losses import Criterion

from .queries import query_batch

OF_CLASSES = ("labels", "vfl", "focal", "bce", "mal")  # others: of boxes, corners and masks


class CriterionLoss:
    """A model's ``loss_function``, or an entry of ``LOSS_MAPPING``.

    Attributes:
        iteration: of the next step, which weights with a warm-up or schedule read. It is in no
            checkpoint: set it where a training is resumed.
    """

    def __init__(self, function: Any, criterion: Criterion):
        self.function, self.criterion, self.iteration = function, criterion, 0
        names = getattr(function, "__globals__", {})
        used = getattr(getattr(function, "__code__", None), "co_names", ())
        self.classes = [name for name in used if hasattr(names.get(name), "get_loss")]
        if len(self.classes) != 1:
            raise TypeError(
                "expected a model whose loss is made as that of RT-DETR, D-FINE, Deformable DETR "
                f"or DETR, got one with {getattr(function, '__name__', function)}"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any], Any]:
        # transformers' function as it is, which is given a class derived from that of its losses.
        code, names = self.function.__code__, dict(self.function.__globals__)
        (name,) = self.classes
        names[name] = type(name, (_Losses, names[name]), {"owner": self})
        function = FunctionType(code, names, None, self.function.__defaults__)
        total, losses, outputs = function(*args, **kwargs)
        self.iteration += 1
        if "weight_dict" in code.co_varnames + code.co_cellvars:  # it weights what it knows
            total = total + sum(loss for name, loss in losses.items() if self.adds(name))
        return total, losses, outputs

    def adds(self, name: str) -> bool:
        """Whether a loss is a coupling's, of the last layer or another."""
        return any(f"{name}_".startswith(f"loss_{own}_") for own in self.criterion.couplings)


class _Losses:
    def get_loss(self, loss, outputs, targets, indices, num_boxes):
        if loss not in OF_CLASSES:
            losses = super().get_loss(loss, outputs, targets, indices, num_boxes)
            return {name: value for name, value in losses.items() if name != "loss_giou"}
        matched = query_batch(outputs, targets, indices, self.num_classes)
        losses = self.owner.criterion(matched, num_boxes, self.owner.iteration)
        # What has no weight is left out.
        weights = getattr(self, "weight_dict", {})
        weights.update((name, 1) for name in losses if self.owner.adds(name))
        own = "loss_ce" if loss == "labels" else f"loss_{loss}"
        return {own: losses.pop("loss_cls"), "loss_giou": losses.pop("loss_box_reg"), **losses}
