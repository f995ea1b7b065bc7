"""Faster, Mask and Cascade R-CNN with the losses of a Criterion.

Ren et al. 2015, He et al. 2017, Cai & Vasconcelos 2018: Detectron2's architecture, weights and
inference; the losses of the box head come from ``MODEL.CRITERION``, at each stage of a cascade.
Those of the masks stay Detectron2's, unless ``MODEL.ROI_MASK_HEAD`` asks for others, and so do
those of the region proposals, unless ``MODEL.PROPOSAL_GENERATOR.NAME`` is CorrdetRPN.
"""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from torch import nn

from corrdet.config_keys import SECTIONS
from corrdet.errors import ConfigError
from corrdet.losses import Criterion
from corrdet.names import unknown_name
from corrdet.options import SHARE, numbers

from ..core.config_checks import check_unset
from ..core.detector import Detector
from ..core.training import add_positives
from .rpn import CorrdetRPN

_SHARES = numbers(each=SHARE)


@META_ARCH_REGISTRY.register()
class CorrdetRCNN(Detector, GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, for the losses of a Criterion in its CorrdetROIHeads.

    With CorrdetCascadeROIHeads it is Cascade R-CNN. At evaluation, images that come with
    ``instances`` (the ground truth) also get ``positives`` in their output: scores and IoUs of the
    matched proposals before post-processing, for beta_img.
    """

    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"
    activation_key = "MODEL.ROI_BOX_HEAD.ACTIVATION"
    sections = ("MODEL.ROI_HEADS", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD", "MODEL.RPN")
    replaced_keys = (
        "MODEL.ROI_BOX_HEAD",
        (
            ("SMOOTH_L1_BETA", "SMOOTH_L1.BETA"),
            ("BBOX_REG_LOSS_TYPE", "LOCALIZATION"),
            ("BBOX_REG_LOSS_WEIGHT", "LOCALIZATION_WEIGHT"),
        ),
    )
    supports_test_time_augmentation = True  # by Detectron2's GeneralizedRCNNWithTTA

    @classmethod
    def from_config(cls, cfg):
        cls.check_values(cfg)
        return super().from_config(cfg)

    @classmethod
    def criterion_keys(cls, cfg) -> tuple[str, ...]:
        has_own = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CorrdetRPN"
        return ("MODEL.CRITERION", "MODEL.RPN_CRITERION") if has_own else ("MODEL.CRITERION",)

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        heads = cfg.MODEL.ROI_HEADS.NAME
        if heads not in ("CorrdetROIHeads", "CorrdetCascadeROIHeads"):
            raise ConfigError(
                "MODEL.ROI_HEADS.NAME must be 'CorrdetROIHeads' or 'CorrdetCascadeROIHeads' for "
                f"CorrdetRCNN, got {heads!r}; GeneralizedRCNN is Detectron2's own"
            )
        if heads == "CorrdetCascadeROIHeads":
            _check_cascade(cfg)
        generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        known = [*(name for name, _ in PROPOSAL_GENERATOR_REGISTRY), "PrecomputedProposals"]
        if generator not in known:
            raise ConfigError(
                "MODEL.PROPOSAL_GENERATOR.NAME: " + unknown_name("name", generator, known)
            )
        if generator != "CorrdetRPN":
            reason = f"MODEL.PROPOSAL_GENERATOR.NAME is {generator!r}, not 'CorrdetRPN'"
            check_unset(cfg, "MODEL.RPN_CRITERION", reason)
            for name, key in SECTIONS["MODEL.RPN"].items():
                value = cfg.MODEL.RPN[name]
                if value != key.default:
                    raise ConfigError(
                        f"MODEL.RPN.{name} is {value}, but nothing reads it: {reason}"
                    )

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CorrdetRPN":
            CorrdetRPN.build_criterion(cfg)

    @property
    def criterion(self) -> Criterion:
        """Of the box head; in a cascade, of the last stage's."""
        predictor = self.roi_heads.box_predictor
        return (predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor).criterion

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As detectron2's GeneralizedRCNN.inference; see the class for ``positives``."""
        has_truth = all("instances" in image for image in batched_inputs)
        if not has_truth or detected_instances is not None or not do_postprocess:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.proposal_generator is not None:
            proposals, _ = self.proposal_generator(images, features, None)
        else:
            proposals = [image["proposals"].to(self.device) for image in batched_inputs]
        results, _ = self.roi_heads(images, features, proposals, None)
        outputs = self._postprocess(results, batched_inputs, images.image_sizes)
        gt_instances = [image["instances"].to(self.device) for image in batched_inputs]
        matched, scores = self.roi_heads.match_proposals(features, proposals, gt_instances)
        add_positives(outputs, matched, scores)
        return outputs


def _check_cascade(cfg) -> None:
    """
    Raises:
        ConfigError: stages that do not go together; Detectron2 asserts that they do.
    """
    node, heads = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
    ious, weights = node.IOUS, node.BBOX_REG_WEIGHTS
    if not _SHARES.holds(ious) or not ious:
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS must be an IoU for each stage, got {ious!r}"
        )
    if len(weights) != len(ious) or not all(map(numbers(4).holds, weights)):
        raise ConfigError(
            "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS must be four positive numbers for each of "
            f"the {len(ious)} stages of IOUS, got {weights!r}"
        )
    if list(heads.IOU_THRESHOLDS) != [ious[0]]:
        raise ConfigError(
            "MODEL.ROI_HEADS.IOU_THRESHOLDS must be the first of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, "
            f"{[ious[0]]}, got {list(heads.IOU_THRESHOLDS)}"
        )
    for key in ("CLS_AGNOSTIC_BBOX_REG", "TRAIN_ON_PRED_BOXES"):
        value, expected = cfg.MODEL.ROI_BOX_HEAD[key], key == "CLS_AGNOSTIC_BBOX_REG"
        if value != expected:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.{key} must be {expected} with CorrdetCascadeROIHeads, got "
                f"{value}"
            )
