"""RetinaNet (Lin et al., 2017) with the losses of a Criterion."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from corrdet.losses import Criterion
from corrdet.matching import max_iou_matching

from .dense import CriterionTraining
from .positives import check_image_bounds
from .replaced_keys import check_replaced_keys

# Detectron2's own keys for the losses, with the defaults of both: (its key, its default, ours for
# the same, our default). The defaults of beta differ: ours is what Detectron2's RetinaNet configs
# set, and what RetinaNet was published with.
_REPLACED_KEYS = (
    ("FOCAL_LOSS_ALPHA", 0.25, "SIGMOID_FOCAL.ALPHA", 0.25),
    ("FOCAL_LOSS_GAMMA", 2.0, "SIGMOID_FOCAL.GAMMA", 2.0),
    ("SMOOTH_L1_LOSS_BETA", 0.1, "SMOOTH_L1.BETA", 0.0),
    ("BBOX_REG_LOSS_TYPE", "smooth_l1", "LOCALIZATION", "smooth_l1"),
)


@META_ARCH_REGISTRY.register()
class CorrdetRetinaNet(CriterionTraining, RetinaNet):
    """Detectron2's RetinaNet: anchors, head, weights and inference; with a Criterion's losses."""

    num_classes_key = "MODEL.RETINANET.NUM_CLASSES"

    @configurable
    def __init__(self, *, criterion: Criterion, image_bounds: bool = False, **kwargs):
        """
        Args:
            criterion: the losses.
            image_bounds: output ``instances_upper`` and ``instances_lower`` at evaluation.
            kwargs: as detectron2's RetinaNet, without its loss parameters.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.image_bounds = image_bounds

    @classmethod
    def from_config(cls, cfg):
        check_image_bounds(cfg)
        criterion = cls.build_criterion(cfg)
        parameters = super().from_config(cfg)
        for loss_parameter in (
            "focal_loss_alpha",
            "focal_loss_gamma",
            "smooth_l1_beta",
            "box_reg_loss_type",
        ):
            del parameters[loss_parameter]
        parameters["criterion"] = criterion
        parameters["image_bounds"] = cfg.TEST.IMAGE_BOUNDS
        return parameters

    @classmethod
    def build_criterion(cls, cfg) -> Criterion:
        """The losses of a config; needs no model, so that they can be checked before one is built.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`; or one of Detectron2's own loss
                keys asks for another loss than MODEL.CRITERION does.
        """
        criterion = super().build_criterion(cfg)
        check_replaced_keys(cfg, "MODEL.RETINANET", "MODEL.CRITERION", _REPLACED_KEYS, cls.__name__)
        return criterion

    def normalizer(self, num_positives: int) -> float:
        """A running mean of the positives of a batch, of this process; as Detectron2's."""
        return self._ema_update("loss_normalizer", max(num_positives, 1), 100)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As detectron2's RetinaNet.label_anchors, on corrdet's IoU kernel."""
        anchors = Boxes.cat(anchors).tensor
        matches = [
            max_iou_matching(
                anchors,
                instances.gt_boxes.tensor,
                instances.gt_classes,
                self.anchor_matcher,
                self.num_classes,
            )
            for instances in gt_instances
        ]
        return [labels for labels, _ in matches], [boxes for _, boxes in matches]
