"""torchvision's RetinaNet, FCOS, SSD, Faster, Mask and Keypoint R-CNN with corrdet's losses."""

from typing import TypeVar

from torch import nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD

from corrdet.losses import Criterion

from .dense import CriterionFCOSHead, CriterionRetinaNetHead
from .rcnn import CriterionRoIHeads
from .ssd import CriterionSSD

__all__ = ["use_criterion"]

Model = TypeVar("Model", bound=nn.Module)

_KINDS = {
    RetinaNetHead: CriterionRetinaNetHead,
    FCOSHead: CriterionFCOSHead,
    SSD: CriterionSSD,
    RoIHeads: CriterionRoIHeads,
}


def use_criterion(model: Model, criterion: Criterion) -> Model:
    """Train a torchvision detector with the losses of a Criterion.

    RetinaNet and FCOS have sigmoid heads, SSD and the box heads of R-CNN softmax heads. What else
    they train, centerness, masks, keypoints and region proposals, keeps torchvision's losses. The
    part of the model that has the losses becomes one of a class derived from its own, with the
    attributes ``criterion`` and ``iteration``; parameters keep their names.

    Args:
        model: a detector of torchvision, changed in place.
        criterion: sums over samples are divided by the positives of the batch, of R-CNN by its
            sampled proposals.

    Returns:
        the model; in training it returns the losses under torchvision's names, and couplings as
        ``loss_<coupling>``.

    Raises:
        TypeError: not one such part is in the model.
    """
    kinds = {**_KINDS, **{kind: kind for kind in _KINDS.values()}}
    parts = [part for part in model.modules() if type(part) in kinds]
    if len(parts) != 1:
        raise TypeError(
            "expected a detector of torchvision with one of "
            f"{', '.join(kind.__name__ for kind in _KINDS)}, got {type(model).__name__} with "
            f"{len(parts)} of them"
        )
    parts[0].__class__ = kinds[type(parts[0])]
    parts[0].criterion = criterion
    return model
