"""RetinaNet and FCOS: what computes their losses, from anchors that are matched already."""

import torch
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from corrdet.losses import MatchedPredictions

from .._batch import CriterionOwner, ground_truth


class DenseOwner(CriterionOwner):
    """Has what is computed of anchors; of a class whose ``box_coder`` makes their deltas boxes."""

    names = {"loss_cls": "classification", "loss_box_reg": "bbox_regression"}

    def matched(self, targets, head_outputs, anchors, matched_idxs) -> MatchedPredictions:
        """Of torchvision's matches, where -1 is background and -2 ignored."""
        logits, matches = head_outputs["cls_logits"], torch.stack(matched_idxs)
        images, indices = (matches >= 0).nonzero(as_tuple=True)
        gt_boxes, classes = ground_truth(targets, images, matches[images, indices])
        labels = torch.full_like(matches, logits.shape[-1])
        labels[images, indices] = classes
        labels[matches == -2] = -1
        priors = torch.stack(anchors)[images, indices]
        deltas = head_outputs["bbox_regression"][images, indices].float()
        coder = self.box_coder
        encode = getattr(coder, "encode_single", coder.encode)
        decode = getattr(coder, "decode_single", coder.decode)
        return MatchedPredictions(
            logits=logits.flatten(0, 1),
            labels=labels.flatten(),
            positives=images * matches.shape[1] + indices,
            boxes=decode(deltas, priors),
            gt_boxes=gt_boxes,
            image_ids=images,
            deltas=deltas,
            gt_deltas=encode(gt_boxes, priors),
            priors=priors,
            num_images=len(targets),
        )


class CriterionRetinaNetHead(DenseOwner, RetinaNetHead):
    @property
    def box_coder(self):
        return self.regression_head.box_coder

    def compute_loss(self, *args):
        return self.losses(self.matched(*args))


class CriterionFCOSHead(DenseOwner, FCOSHead):
    def compute_loss(self, *args):
        # The centerness stays torchvision's.
        return {**super().compute_loss(*args), **self.losses(self.matched(*args))}
