"""Faster R-CNN and Mask R-CNN (Ren et al. 2015, He et al. 2017) with the losses of a Criterion.

Detectron2's architecture, weights and inference; the losses of the box head come from
``MODEL.CRITERION``. Those of the masks stay Detectron2's, and so do those of the region proposals,
unless ``MODEL.PROPOSAL_GENERATOR.NAME`` is CorrdetRPN.
"""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY

from corrdet.errors import ConfigError
from corrdet.losses import Criterion
from corrdet.names import unknown_name

from ..core.config_checks import check_unset
from ..core.detector import Detector
from ..core.training import add_positives
from .rpn import CorrdetRPN


@META_ARCH_REGISTRY.register()
class CorrdetRCNN(Detector, GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, for the losses of a Criterion in its CorrdetROIHeads.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: scores and IoUs of the matched proposals before post-processing, for beta_img.
    """

    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"
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
    def activation_of(cls, cfg) -> str:
        return "softmax"

    @classmethod
    def criterion_keys(cls, cfg) -> tuple[str, ...]:
        has_own = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CorrdetRPN"
        return ("MODEL.CRITERION", "MODEL.RPN_CRITERION") if has_own else ("MODEL.CRITERION",)

    @classmethod
    def check_values(cls, cfg) -> None:
        super().check_values(cfg)
        if cfg.MODEL.ROI_HEADS.NAME != "CorrdetROIHeads":
            raise ConfigError(
                "MODEL.ROI_HEADS.NAME must be 'CorrdetROIHeads' for CorrdetRCNN, got "
                f"{cfg.MODEL.ROI_HEADS.NAME!r}; GeneralizedRCNN is Detectron2's own"
            )
        generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        known = [*(name for name, _ in PROPOSAL_GENERATOR_REGISTRY), "PrecomputedProposals"]
        if generator not in known:
            raise ConfigError(
                "MODEL.PROPOSAL_GENERATOR.NAME: " + unknown_name("name", generator, known)
            )
        if generator != "CorrdetRPN":
            reason = f"MODEL.PROPOSAL_GENERATOR.NAME is {generator!r}, not 'CorrdetRPN'"
            check_unset(cfg, "MODEL.RPN_CRITERION", reason)

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CorrdetRPN":
            CorrdetRPN.build_criterion(cfg)

    @property
    def criterion(self) -> Criterion:
        return self.roi_heads.box_predictor.criterion

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
        matched = self.roi_heads.match_proposals(features, proposals, gt_instances)
        add_positives(outputs, matched)
        return outputs
