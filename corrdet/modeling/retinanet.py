"""RetinaNet (Lin et al., 2017) with the losses of a Criterion."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions, build_criterion
from corrdet.matching import max_iou_matching
from corrdet.names import config_value

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
class CorrdetRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, anchors, head, weights and inference, with the losses of a Criterion.

    At evaluation, images that come with ``instances`` (the ground truth) also get ``positives`` in
    their output: the matched anchors' scores and IoUs before post-processing, for beta_img. With
    ``image_bounds`` they get ``instances_upper`` and ``instances_lower`` too: what comes out of
    post-processing when an image's positives have their scores in the order of their IoUs, or
    against it, for the bounds of AP at image level.
    """

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
        # Of the latest training batch, without gradient, for logging and error messages: the losses
        # by name, and the positives' scores and IoUs, (P,) each.
        self.latest_losses: dict[str, Tensor] | None = None
        self.latest_positives: dict[str, Tensor] | None = None

    @classmethod
    def from_config(cls, cfg):
        if cfg.TEST.IMAGE_BOUNDS and not cfg.TEST.BETA_IMG:
            raise ValueError(
                "TEST.IMAGE_BOUNDS True needs the ground truth at evaluation: expected "
                "TEST.BETA_IMG True, got False"
            )
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
        criterion = build_criterion(cfg, activation="sigmoid", has_deltas=True)
        node = cfg.MODEL.CRITERION
        for key, default, replacement, our_default in _REPLACED_KEYS:
            loss, _, option = replacement.partition(".")
            if option and loss.lower() not in (node.CLASSIFICATION, node.LOCALIZATION):
                continue  # an option of a loss that is not used
            theirs, ours = cfg.MODEL.RETINANET[key], config_value(node, replacement)
            was_replaced = theirs == default and ours != our_default
            if theirs != ours and not was_replaced:
                raise ValueError(
                    f"MODEL.RETINANET.{key} is {theirs!r}, but {cls.__name__} takes its losses "
                    f"from MODEL.CRITERION: set MODEL.CRITERION.{replacement}, which is {ours!r}, "
                    f"or MODEL.RETINANET.{key} so that both say the same"
                )
        return criterion

    def forward(self, batched_inputs: list[dict]):
        """As detectron2's DenseDetector.forward; see the class for what else is in the output."""
        if self.training:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)

        outputs = [{} for _ in batched_inputs]
        to_process = {"instances": predictions}
        if all("instances" in image for image in batched_inputs):
            gt_instances = [image["instances"].to(self.device) for image in batched_inputs]
            matched = self.match_predictions(features, predictions, gt_instances)
            for image_id, output in enumerate(outputs):
                of_image = matched.image_ids == image_id
                output["positives"] = {
                    "scores": matched.scores[of_image],
                    "ious": matched.ious[of_image],
                }
            if self.image_bounds:
                for bound in ("upper", "lower"):
                    logits = _bound_logits(matched, predictions[0], upper=bound == "upper")
                    to_process[f"instances_{bound}"] = logits, predictions[1]
        for name, to_infer in to_process.items():
            results = self.forward_inference(images, features, to_infer)
            for output, result, image, size in zip(
                outputs, results, batched_inputs, images.image_sizes, strict=False
            ):
                output[name] = detector_postprocess(
                    result, image.get("height", size[0]), image.get("width", size[1])
                )
        return outputs

    def forward_training(self, images, features, predictions, gt_instances):
        matched = self.match_predictions(features, predictions, gt_instances)
        num_positives = len(matched.positives)
        get_event_storage().put_scalar("num_pos_anchors", num_positives / len(gt_instances))
        matched.normalizer = self._ema_update("loss_normalizer", max(num_positives, 1), 100)
        losses = self.criterion(matched, get_event_storage().iter)
        self.latest_losses = {name: loss.detach() for name, loss in losses.items()}
        self.latest_positives = {
            "scores": matched.scores.detach(),
            "ious": matched.ious.detach(),
        }
        return losses

    def match_predictions(
        self,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> MatchedPredictions:
        """Label all anchors of a batch and gather what the losses read.

        Args:
            features: per level, (N, channels, H, W).
            predictions: the head's logits and deltas, per level (N, A x K, H, W), (N, A x 4, H, W).
            gt_instances: the ground truth of the N images.

        Returns:
            samples are the R anchors of each of the N images, image by image; the normalizer is 1.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        logits = torch.cat(logits, dim=1).flatten(0, 1)  # (N x R, K)
        deltas = torch.cat(deltas, dim=1).flatten(0, 1)  # (N x R, 4)
        anchors = self.anchor_generator(features)
        labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        labels, gt_boxes = torch.cat(labels), torch.cat(gt_boxes)
        anchors = Boxes.cat(anchors).tensor  # (R, 4)

        positives = torch.nonzero((labels >= 0) & (labels != self.num_classes))[:, 0]
        gt_boxes, deltas = gt_boxes[positives], deltas[positives].float()
        positive_anchors = anchors[positives % len(anchors)]
        return MatchedPredictions(
            logits=logits,
            labels=labels,
            positives=positives,
            boxes=self.box2box_transform.apply_deltas(deltas, positive_anchors),
            gt_boxes=gt_boxes,
            image_ids=positives // len(anchors),
            normalizer=1.0,
            deltas=deltas,
            gt_deltas=self.box2box_transform.get_deltas(positive_anchors, gt_boxes),
        )

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


def _bound_logits(
    matched: MatchedPredictions, level_logits: list[Tensor], *, upper: bool
) -> list[Tensor]:
    """Logits that give an image's positives their scores in the order of their IoUs, or against it.

    Only the logits of positives for their own class change, and only places ("Correlation Loss",
    section 3.2.1).

    Args:
        matched: of :meth:`CorrdetRetinaNet.match_predictions`.
        level_logits: the head's, per level (N, A x K, H, W).
        upper: the largest score to the largest IoU, else to the smallest.

    Returns:
        new logits, shaped as the head's.
    """
    logits, num_images = matched.logits.clone(), len(level_logits[0])
    rows, columns = matched.positives, matched.labels[matched.positives]
    for image_id in range(num_images):
        of_image = torch.nonzero(matched.image_ids == image_id)[:, 0]
        values = logits[rows[of_image], columns[of_image]].sort().values
        by_iou = of_image[matched.ious[of_image].argsort(descending=not upper, stable=True)]
        logits[rows[by_iou], columns[by_iou]] = values

    sizes = [level[0].numel() // logits.shape[1] for level in level_logits]
    levels = logits.view(num_images, -1, logits.shape[1]).split(sizes, dim=1)
    bound = []
    for values, level in zip(levels, level_logits, strict=True):
        height, width = level.shape[-2:]
        values = values.reshape(num_images, height, width, -1)  # (N, H, W, A x K)
        bound.append(values.permute(0, 3, 1, 2))
    return bound
