"""Region proposals (Ren et al. 2015) with the losses of a Criterion of their own."""

import torch
from detectron2.config import configurable
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, build_criterion

from ..core.config_checks import check_replaced_keys
from ..core.training import gather

# A key of Detectron2's for losses, and ours for the same.
_REPLACED_KEYS = (
    ("SMOOTH_L1_BETA", "SMOOTH_L1.BETA"),
    ("BBOX_REG_LOSS_TYPE", "LOCALIZATION"),
)


@PROPOSAL_GENERATOR_REGISTRY.register()
class CorrdetRPN(RPN):
    """Detectron2's RPN, whose losses ``MODEL.RPN_CRITERION`` names; objectness is one class.

    With ``sigmoid_cross_entropy`` and ``smooth_l1`` and no coupling the losses are Detectron2's.
    """

    @configurable
    def __init__(self, *, criterion: Criterion, **kwargs):
        """
        Args:
            criterion: the losses, for a sigmoid head with deltas.
            kwargs: as detectron2's RPN.
        """
        super().__init__(**kwargs)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg, input_shape):
        parameters = super().from_config(cfg, input_shape)
        return {**parameters, "criterion": cls.build_criterion(cfg)}

    @staticmethod
    def build_criterion(cfg) -> Criterion:
        """The losses of a config.

        Raises:
            ValueError: as :func:`corrdet.losses.build_criterion`; or one of Detectron2's own loss
                keys asks for another loss than MODEL.RPN_CRITERION does.
        """
        criterion = build_criterion(
            cfg,
            activation="sigmoid",
            has_deltas=True,
            has_levels=True,
            key="RPN_CRITERION",
            owner="CorrdetRPN",
        )
        check_replaced_keys(cfg, "MODEL.RPN", "MODEL.RPN_CRITERION", _REPLACED_KEYS, "CorrdetRPN")
        return criterion

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level, (R_l, 4).
            pred_objectness_logits: per level, (N, R_l).
            gt_labels: per image, (R,): 1 object, 0 none, -1 not sampled.
            pred_anchor_deltas: per level, (N, R_l, 4).
            gt_boxes: per image, (R, 4): what each anchor is matched with.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_loc`` and ``loss_rpn_<coupling>``, weighted as Detectron2
            weights the first two; couplings as the first.
        """
        objectness = torch.stack(gt_labels).flatten()
        all_anchors = Boxes.cat(anchors).tensor
        matched = gather(
            torch.cat(pred_objectness_logits, dim=1).flatten()[:, None],
            # Class 0 is an object, 1 the background.
            torch.where(objectness < 0, -1, 1 - objectness.long()),
            torch.stack(gt_boxes).flatten(0, 1),
            torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1),
            all_anchors.expand(len(gt_labels), -1, -1),
            self.box2box_transform,
            priors_per_level=[len(level) for level in anchors],
        )
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", len(matched.positives) / len(gt_labels))
        normalizer = self.batch_size_per_image * len(gt_labels)
        losses = self.criterion(matched, normalizer, storage.iter)
        losses["loss_loc"] = losses.pop("loss_box_reg")
        losses = {name.replace("loss_", "loss_rpn_"): loss for name, loss in losses.items()}
        default_weight = self.loss_weight.get("loss_rpn_cls", 1.0)
        return {
            name: loss * self.loss_weight.get(name, default_weight) for name, loss in losses.items()
        }
