"""``VIS_PERIOD``: pictures of the training, which Detectron2's Visualizer draws with OpenCV."""

import importlib
import logging
from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from torch import nn

from corrdet.errors import ConfigError
from corrdet.modeling.core.detector import Detector

from .random_state import get_random_states, set_random_states

_MAX_BOXES = 20


def check_pictures(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: pictures of the training are asked for, and OpenCV cannot be used.
    """
    if cfg.VIS_PERIOD <= 0:
        return
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, but pictures need OpenCV, which was not imported "
            f"({error}): pip install opencv-python-headless, or VIS_PERIOD 0"
        ) from error


def draws_no_pictures(cfg: CfgNode) -> bool:
    """Whether a detector does not draw by itself what it finds, as Detectron2's own do."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return issubclass(architecture, Detector) and not issubclass(architecture, GeneralizedRCNN)


class Pictures(HookBase):
    """Draws the first image of a batch for TensorBoard: its objects, and what is detected in it.

    The detector runs once more for it, as in testing, so that every detector can be drawn; the
    training is the same as without.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg: the config, of which ``VIS_PERIOD`` says how often.
            model: of this process.
        """
        self._period = cfg.VIS_PERIOD
        self._format = cfg.INPUT.FORMAT
        names = cfg.DATASETS.TRAIN
        self._classes = MetadataCatalog.get(names[0]).get("thing_classes") if names else None
        self._model = model

    def after_step(self):
        if self.trainer.iter % self._period:
            return
        batch = self.trainer._loader.last_batch
        image = batch[0] if isinstance(batch, list | tuple) and batch else None
        if not isinstance(image, Mapping) or not {"image", "instances"} <= image.keys():
            message = "VIS_PERIOD: batches of another format than Detectron2's are not drawn"
            log_first_n(logging.WARNING, message, key="message", name=__name__)
            return
        modes, states = [(m, m.training) for m in self._model.modules()], get_random_states()
        self._model.eval()
        try:
            with torch.no_grad():
                found = self._model([{"image": image["image"]}])[0]["instances"].to("cpu")
            picture = self._draw(image["image"], image["instances"].to("cpu"), found)
        finally:
            for module, mode in modes:
                module.training = mode
            set_random_states(states)  # colors are drawn from numpy's
        self.trainer.storage.put_image("ground truth (top), detections (bottom)", picture)

    def _draw(self, image: torch.Tensor, given: Instances, found: Instances) -> np.ndarray:
        """(3, 2 H, W) uint8."""
        from detectron2.utils.visualizer import Visualizer  # imports OpenCV

        found = found[found.scores.argsort(descending=True)[:_MAX_BOXES]]
        labels = [
            f"{name} {score:.0%}"
            for name, score in zip(
                self._names(found.pred_classes), found.scores.tolist(), strict=True
            )
        ]
        pixels = convert_image_to_rgb(image.permute(1, 2, 0), self._format)
        pictures = [
            Visualizer(pixels, None).overlay_instances(
                boxes=instances.get(f"{kind}_boxes"),
                masks=instances.get_fields().get(f"{kind}_masks"),
                labels=names,
            )
            for kind, instances, names in (
                ("gt", given, self._names(given.gt_classes)),
                ("pred", found, labels),
            )
        ]
        return np.concatenate([p.get_image() for p in pictures]).transpose(2, 0, 1)

    def _names(self, classes: torch.Tensor) -> list[str]:
        known = self._classes or ()
        return [known[c] if c < len(known) else str(c) for c in classes.tolist()]
