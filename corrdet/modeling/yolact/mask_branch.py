"""YOLACT's masks: prototypes, their coefficients and a semantic segmentation, with their losses."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor

from ..dense.detector import Batch, Branch, per_sample
from .head import MaskPredictions
from .masks import assemble_masks, mask_ious, paste_masks, pixels_near, shrink_masks


class MaskBranch(Branch):
    """Masks of positives and detections, as linear combinations of prototypes (Sec. 3)."""

    def __init__(
        self,
        *,
        prototype_stride: int,
        mask_weight: float,
        max_masks: int,
        semantic_weight: float,
        quality: str,
        mask_targets: str = "shares",
    ):
        """
        Args:
            prototype_stride: pixels of the image along a side of a pixel of the prototypes.
            mask_weight: of ``loss_mask``.
            max_masks: of an image that are trained on, chosen at random.
            semantic_weight: of ``loss_semantic``.
            quality: "mask" if the IoUs of positives are those of masks, "box" if not.
            mask_targets: "shares", of the pixels of the prototypes that are in a mask, or "binary",
                decided at 1/2.
        """
        super().__init__()
        self.prototype_stride = prototype_stride
        self.mask_weight = mask_weight
        self.max_masks = max_masks
        self.semantic_weight = semantic_weight
        self.quality = quality
        self.mask_targets = mask_targets

    # ---- Training.

    def positive_masks(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        """For each image in turn, what is predicted of its P' positives and what is there.

        Letters: K prototypes of H x W pixels, M ground truths of an image.

        Yields:
            indices (P',) among all positives of the batch; coefficients (P', K); prototypes
            (K, H, W); ground truths (P',) in 0..M-1; their masks, as :meth:`shrunk_masks`.
        """
        predictions: MaskPredictions = batch.samples.predictions
        matched, num_prototypes = batch.matched, predictions.prototypes.shape[1]
        coefficients = per_sample(predictions.coefficients, num_prototypes)
        for image_id, (prototypes, instances) in enumerate(
            zip(predictions.prototypes, batch.gt_instances, strict=True)
        ):
            indices = torch.nonzero(matched.image_ids == image_id)[:, 0]
            rows = matched.positives[indices]
            yield (
                indices,
                coefficients[rows],
                prototypes,
                batch.assignment.ground_truths[rows],
                self.shrunk_masks(
                    instances, self.prototype_stride, prototypes.shape[1:], prototypes.device
                ),
            )

    def shrunk_masks(
        self, instances: Instances, stride: int, size: tuple[int, int], device: torch.device
    ) -> Tensor:
        """(M, height, width) shares of pixels in the masks of the M ground truths.

        Raises:
            ValueError: there are none.
        """
        if len(instances) == 0:
            return torch.zeros((0, *size), device=device)
        if not instances.has("gt_masks"):
            raise ValueError(
                "CorrdetYOLACT needs the mask of every object, as 'gt_masks'; got instances with "
                f"{', '.join(instances.get_fields())}"
            )
        masks = shrink_masks(instances.gt_masks, instances.image_size, stride, *size)
        return masks.to(device)

    @torch.no_grad()
    def ious(self, batch: Batch) -> Tensor | None:
        """With the quality "mask", of the positives' masks, cut at their predicted boxes."""
        if self.quality != "mask":
            return None
        ious = torch.zeros_like(batch.matched.positives, dtype=torch.float32)
        for indices, coefficients, prototypes, ground_truths, gt_masks in self.positive_masks(
            batch
        ):
            boxes = batch.matched.boxes[indices] / self.prototype_stride
            near = pixels_near(boxes, *prototypes.shape[1:])
            # A probability above 1/2.
            masks = (assemble_masks(prototypes, coefficients) > 0) & near
            ious[indices] = mask_ious(masks, gt_masks[ground_truths] >= 0.5)
        return ious

    def losses(self, batch: Batch, normalizer: float | Tensor) -> dict[str, Tensor]:
        """``loss_mask`` and ``loss_semantic``."""
        logits = batch.samples.predictions.semantic
        return {
            "loss_mask": self.mask_loss(batch, normalizer),
            "loss_semantic": self.semantic_loss(logits, batch.gt_instances),
        }

    def mask_loss(self, batch: Batch, normalizer: float | Tensor) -> Tensor:
        """Cross entropy of the positives' masks up to a pixel around their ground-truth boxes.

        It is divided by the area of the box, so that all objects count the same (Sec. 3.1), and by
        the normalizer. Of an image with more than ``max_masks`` positives those that are chosen
        stand for all.
        """
        total = 0.0
        for indices, coefficients, prototypes, ground_truths, gt_masks in self.positive_masks(
            batch
        ):
            num_positives = len(indices)
            if num_positives > self.max_masks:
                chosen = torch.randperm(num_positives, device=indices.device)[: self.max_masks]
                indices, coefficients = indices[chosen], coefficients[chosen]
                ground_truths = ground_truths[chosen]
            boxes = batch.matched.gt_boxes[indices] / self.prototype_stride
            near = pixels_near(boxes, *prototypes.shape[1:])
            losses = F.binary_cross_entropy_with_logits(
                assemble_masks(prototypes, coefficients),
                self.targets(gt_masks[ground_truths]),
                reduction="none",
            )
            # At least a pixel.
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1)
            loss = ((losses * near).sum(dim=(1, 2)) / areas).sum()
            total = total + loss * (num_positives / max(len(indices), 1))
        return total / normalizer * self.mask_weight

    def targets(self, shares: Tensor) -> Tensor:
        """What masks are trained towards, of the shares of pixels that are in them."""
        return shares if self.mask_targets == "shares" else (shares >= 0.5).float()

    def semantic_loss(self, logits: Tensor, gt_instances: list[Instances]) -> Tensor:
        """Cross entropy of each class and pixel, the sum over classes (Sec. 3.3).

        Args:
            logits: (N, C, H, W).
            gt_instances: the ground truth of the N images.
        """
        targets = torch.zeros_like(logits, dtype=torch.float32)
        for target, instances in zip(targets, gt_instances, strict=True):
            masks = self.shrunk_masks(
                instances, 2 * self.prototype_stride, logits.shape[2:], logits.device
            )
            # A pixel may belong to several objects.
            target.index_add_(0, instances.gt_classes, (masks >= 0.5).float()).clamp_(max=1)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum(dim=1).mean() * self.semantic_weight

    # ---- Inference.

    def complete(
        self, result: Instances, priors: Tensor, predictions: MaskPredictions, image_id: int
    ) -> None:
        """Add ``masks``: (D, H, W) probabilities in the resolution of the prototypes."""
        prototypes = predictions.prototypes[image_id]
        levels = [level[image_id : image_id + 1] for level in predictions.coefficients]
        coefficients = per_sample(levels, len(prototypes))[priors]
        result.masks = assemble_masks(prototypes, coefficients).sigmoid()

    def postprocess(self, result: Instances, height: int, width: int) -> Instances:
        """``masks`` become ``pred_masks``, (D, height, width) bool."""
        scales = height / result.image_size[0], width / result.image_size[1]
        result = detector_postprocess(result, height, width)
        result.pred_masks = paste_masks(
            result.masks,
            result.pred_boxes.tensor,
            tuple(self.prototype_stride * scale for scale in scales),
            height,
            width,
        )
        result.remove("masks")
        return result
