"""Detectron2's LazyConfigs with the losses of a Criterion: RetinaNet and every R-CNN."""

from collections.abc import Iterator

from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from omegaconf import DictConfig, ListConfig

from corrdet.modeling.rcnn.roi_heads import CriterionOutputLayers

from .retinanet import CriterionRetinaNet

__all__ = ["CriterionRetinaNet", "use_criterion"]

_KINDS = {RetinaNet: CriterionRetinaNet, FastRCNNOutputLayers: CriterionOutputLayers}
_KINDS |= {f"{kind.__module__}.{kind.__qualname__}": new for kind, new in _KINDS.items()}


def use_criterion(model: DictConfig, criterion: DictConfig) -> None:
    """Have a config's RetinaNet, or the box predictors of its R-CNN, trained by a Criterion.

    Args:
        model: such as ``model_zoo.get_config("common/models/cascade_rcnn.py").model``; changed, and
            without the options of the losses that it had.
        criterion: ``L(Criterion)(classification=..., localization=..., couplings=[...])``, for a
            softmax head, or of RetinaNet a sigmoid head. Each stage of a cascade has its own.

    Raises:
        ValueError: neither is in the config.
    """
    found = [node for node in _calls(model) if node["_target_"] in _KINDS]
    if not found:
        raise ValueError("expected a config with RetinaNet or FastRCNNOutputLayers, got neither")
    for node in found:
        for option in ("focal_loss_alpha", "focal_loss_gamma", "smooth_l1_beta", "loss_weight"):
            node.pop(option, None)
        node.pop("box_reg_loss_type", None)
        node.update({"_target_": _KINDS[node["_target_"]], "criterion": criterion})


def _calls(node: DictConfig | ListConfig) -> Iterator[DictConfig]:
    if isinstance(node, DictConfig) and "_target_" in node:
        yield node
    if isinstance(node, DictConfig | ListConfig):
        for value in node.values() if isinstance(node, DictConfig) else node:
            yield from _calls(value)
