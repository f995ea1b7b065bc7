"""Region proposals (Ren et al. 2015) with the losses of a Criterion of their own."""

import torch
from detectron2.config import configurable
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.activation import initialize_bias
from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.losses import Criterion, build_criterion
from corrdet.options import BOOL, PROBABILITY, Key

from ..core.config_checks import check_replaced_keys
from ..core.training import BatchPositives, gather

# A key of Detectron2's for losses, and ours for the same.
_REPLACED_KEYS = (
    ("SMOOTH_L1_BETA", "SMOOTH_L1.BETA"),
    ("BBOX_REG_LOSS_TYPE", "LOCALIZATION"),
)

declare(
    "MODEL.RPN",
    "of CorrdetRPN, beside Detectron2's keys",
    SAMPLE=Key(
        True,
        BOOL,
        "whether BATCH_SIZE_PER_IMAGE anchors of an image, chosen at random, are trained on; "
        "False: all, as ranking and focal losses want it, and sums are divided by the number of "
        "positives",
    ),
    PRIOR_PROB=Key(
        0.5,
        PROBABILITY,
        "what all scores of objects are before training; 0.01 for focal losses on all anchors",
    ),
)


@PROPOSAL_GENERATOR_REGISTRY.register()
class CorrdetRPN(RPN):
    """Detectron2's RPN, whose losses ``MODEL.RPN_CRITERION`` names; objectness is one class.

    With ``sigmoid_cross_entropy`` and ``smooth_l1`` and no coupling the losses are Detectron2's.
    """

    @configurable
    def __init__(
        self, *, criterion: Criterion, samples: bool = True, prior_prob: float = 0.5, **kwargs
    ):
        """
        Args:
            criterion: the losses, for a sigmoid head with deltas.
            samples: whether anchors that are chosen at random are trained on; if not, all.
            prior_prob: what scores are about before training; 0.5 is what any head starts with.
            kwargs: as detectron2's RPN.

        Raises:
            ConfigError: another prior probability, and a head without ``objectness_logits``.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.normalizer = None if samples else BatchPositives()
        if prior_prob != 0.5:
            classifier = getattr(self.rpn_head, "objectness_logits", None)
            if classifier is None:
                raise ConfigError(
                    "MODEL.RPN.PRIOR_PROB is for heads with 'objectness_logits', as Detectron2's: "
                    f"expected 0.5 for {type(self.rpn_head).__name__}, got {prior_prob}"
                )
            initialize_bias(classifier, "sigmoid", prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape):
        parameters = super().from_config(cfg, input_shape)
        return {
            **parameters,
            "criterion": cls.build_criterion(cfg),
            "samples": cfg.MODEL.RPN.SAMPLE,
            "prior_prob": cfg.MODEL.RPN.PRIOR_PROB,
        }

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

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """As detectron2's, which changes the labels in place; or all of them."""
        return label if self.normalizer is not None else super()._subsample_labels(label)

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
        normalizer: float | Tensor = self.batch_size_per_image * len(gt_labels)
        if self.normalizer is not None:
            normalizer = self.normalizer(len(matched.positives), objectness.device)
        losses = self.criterion(matched, normalizer, storage.iter)
        losses["loss_loc"] = losses.pop("loss_box_reg")
        losses = {name.replace("loss_", "loss_rpn_"): loss for name, loss in losses.items()}
        default_weight = self.loss_weight.get("loss_rpn_cls", 1.0)
        return {
            name: loss * self.loss_weight.get(name, default_weight) for name, loss in losses.items()
        }
