"""What of ``MODEL.WEIGHTS`` a training starts from: parts of the model, and rows of classes."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor

from corrdet.config_keys import declare
from corrdet.data.coco import classes_of
from corrdet.modeling import Detector
from corrdet.options import Key, Range

from .weights import CheckpointError

_NAMES = Range(
    "a list of names",
    lambda v: isinstance(v, list | tuple) and all(isinstance(x, str) and x for x in v),
)
declare(
    "MODEL",
    WEIGHTS_PARTS=Key(
        (),
        _NAMES,
        "what is taken of MODEL.WEIGHTS: beginnings of the model's names such as ('backbone',), "
        "which has the feature pyramid in it; () takes whatever fits",
    ),
    WEIGHTS_CLASSES=Key(
        (),
        _NAMES,
        "classes that MODEL.WEIGHTS are of, in their order, or the name of their data set such as "
        "('coco_2017_val',): class layers keep the rows of those that the training data have, by "
        "name. (): class layers of another number of classes start anew, others are loaded",
    ),
)
# Layers with rows of classes, as (anchors, classes and perhaps background), and as (classes, 4).
_CLASS_LAYER = re.compile(
    r"(.+\.)?(cls_score|class_embed|semantic|mask_head\.predictor)(\.\d+)*\.(weight|bias)"
)
_CLASS_BOXES = re.compile(r"(.+\.)?box_predictor(\.\d+)?\.bbox_pred\.(weight|bias)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingWeights:
    """
    Attributes:
        parts: as ``MODEL.WEIGHTS_PARTS``.
        theirs: classes of the weights, in their order; () if they do not matter.
        ours: classes of the training data.
        is_softmax: whether the classifier has the background, last.
    """

    parts: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    is_softmax: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "StartingWeights":
        """
        Raises:
            CheckpointError: the classes of the weights have a name twice.
        """
        theirs = tuple(cfg.MODEL.get("WEIGHTS_CLASSES", ()))
        if len(theirs) == 1 and theirs[0] in DatasetCatalog:
            theirs = tuple(classes_of(theirs[0]) or theirs)
        twice = sorted({name for name in theirs if theirs.count(name) > 1})
        if twice:
            raise CheckpointError(f"MODEL.WEIGHTS_CLASSES has {twice[0]!r} twice")
        ours = tuple(classes_of(cfg.DATASETS.TRAIN[0]) or ()) if theirs else ()
        is_softmax = bool(theirs) and _has_background(cfg)
        return cls(tuple(cfg.MODEL.get("WEIGHTS_PARTS", ())), theirs, ours, is_softmax)

    def chosen(self, weights: Mapping[str, Any], own: Mapping[str, Tensor], path: str) -> dict:
        """The weights that are to be loaded.

        Args:
            weights: of the file, under the model's names.
            own: the model's, as it was initialized: rows of new classes stay so.
            path: of the file, for messages.

        Raises:
            CheckpointError: nothing is of these parts, or class layers are of other classes than
                ``theirs``.
        """
        chosen = dict(weights)
        if self.parts:
            chosen = {n: value for n, value in chosen.items() if self._is_of_parts(n, own)}
            if not chosen:
                raise CheckpointError(
                    f"{path} has nothing of MODEL.WEIGHTS_PARTS {self.parts}: expected beginnings "
                    f"of the model's names, such as {sorted({n.split('.')[0] for n in own})}"
                )
        if self.theirs:
            self._keep_rows(chosen, own, path)
        return chosen

    def _is_of_parts(self, name: str, own: Mapping[str, Tensor]) -> bool:
        # Published backbones have the ends of the model's names.
        full = [name] if name in own else [n for n in own if n.endswith(f".{name}")]
        return any(n == part or n.startswith(f"{part}.") for n in full for part in self.parts)

    def _keep_rows(self, chosen: dict, own: Mapping[str, Tensor], path: str) -> None:
        shared = [name for name in self.ours if name in self.theirs]
        layers = 0
        for name in chosen.keys() & own.keys():
            layout = layout_of(name, own[name], len(self.ours), self.is_softmax)
            if layout is None:
                continue
            value = torch.as_tensor(chosen[name]).contiguous()
            kept = rows_of_classes(value, own[name], layout, self.theirs, self.ours)
            if kept is None:
                raise CheckpointError(
                    f"{path}: {name} has {len(value)} rows, which are not those of "
                    f"{len(self.theirs)} classes where the model's {len(own[name])} are of "
                    f"{len(self.ours)}: expected MODEL.WEIGHTS_CLASSES to be all classes that the "
                    "weights were trained with"
                )
            chosen[name] = kept
            layers += 1
        new = [name for name in self.ours if name not in self.theirs]
        logger.log(
            logging.INFO if shared and layers else logging.WARNING,
            "classes of %s: %d tensors keep the rows of %d classes (%s); %d are new (%s)",
            path, layers, len(shared), _listed(shared), len(new), _listed(new),
        )  # fmt: skip


def _has_background(cfg: CfgNode) -> bool:
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not isinstance(detector, type):  # a function of one's own
        return False
    if issubclass(detector, Detector):
        return detector.activation_of(cfg) == "softmax"
    return issubclass(detector, GeneralizedRCNN)  # Detectron2's


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def layout_of(
    name: str, tensor: Tensor, num_classes: int, is_softmax: bool
) -> tuple[int, int, bool] | None:
    """How a tensor of a model has its rows of classes; None if it has none.

    Args:
        name: of the tensor.
        tensor: of the model.
        num_classes: of the model.
        is_softmax: whether its classifier has the background, last.

    Returns:
        rows of each class, 1 if there are rows of the background behind those of the classes,
        and whether rows of a class stand together.
    """
    if tensor.ndim == 0:
        return None
    if _CLASS_BOXES.fullmatch(name):
        is_of_classes = len(tensor) == 4 * num_classes and num_classes > 1
        return (4, 0, True) if is_of_classes else None
    match = _CLASS_LAYER.fullmatch(name)
    if not match or "anchor_refinement" in name:  # RefineDet's first step knows no classes
        return None
    background = int({"cls_score": is_softmax, "class_embed": True}.get(match[2], False))
    count, rest = divmod(len(tensor), num_classes + background)
    return None if rest else (count, background, False)


def rows_of_classes(
    value: Tensor,
    own: Tensor,
    layout: tuple[int, int, bool],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> Tensor | None:
    """The model's tensor with the rows of shared classes, and of the background, from another one.

    Args:
        value: of the file.
        own: of the model.
        layout: see :func:`layout_of`.
        theirs, ours: names of classes of the two.

    Returns:
        a tensor like ``own``, or None if ``value`` has not the rows of ``theirs``.
    """
    count, background, together = layout
    shape = count * (len(theirs) + background), *own.shape[1:]
    if tuple(value.shape) != shape:
        return None
    result = own.detach().clone()
    source, target = (_by_class(tensor, count, together) for tensor in (value, result))
    for index, name in enumerate(ours):
        if name in theirs:
            target[index] = source[list(theirs).index(name)].to(target)
    if background:
        target[-1] = source[-1].to(target)
    return result


def _by_class(tensor: Tensor, count: int, together: bool) -> Tensor:
    """The rows as (classes, count, ...), a view."""
    if together:
        return tensor.view(-1, count, *tensor.shape[1:])
    return tensor.view(count, -1, *tensor.shape[1:]).transpose(0, 1)
