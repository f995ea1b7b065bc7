"""The box heads of Faster, Mask and Keypoint R-CNN."""

import torch
from torchvision.models.detection.roi_heads import RoIHeads

from corrdet.losses import MatchedPredictions

from .._batch import CriterionOwner, ground_truth


class CriterionRoIHeads(CriterionOwner, RoIHeads):
    names = {"loss_cls": "loss_classifier"}
    _samples = None

    def forward(self, features, proposals, image_shapes, targets=None):
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        # torchvision's losses are a function that cannot be replaced: what it is given is looked
        # at, and what it returns is left out.
        seen = []
        look = self.box_predictor.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            look.remove()
        matched = self._matched(seen[0], self._samples, targets)
        self._samples = None
        return result, {**losses, **self.losses(matched, max(len(matched.labels), 1))}

    def select_training_samples(self, proposals, targets):
        self._samples = super().select_training_samples(proposals, targets)
        return self._samples

    def _matched(self, outputs, samples, targets):
        proposals, matches, labels, regression_targets = samples
        logits, deltas = (output.float() for output in outputs)
        images = torch.arange(len(labels), device=logits.device)
        images = images.repeat_interleave(torch.tensor([len(x) for x in labels]).to(images.device))
        labels, priors, gt_deltas = map(torch.cat, (labels, proposals, regression_targets))
        positives = (labels > 0).nonzero()[:, 0]
        images = images[positives]
        gt_boxes, classes = ground_truth(targets, images, torch.cat(matches)[positives])
        deltas = deltas.unflatten(1, (-1, 4))[positives, classes]
        # Background is torchvision's first class, and the last here.
        background = logits.shape[1] - 1
        return MatchedPredictions(
            logits=logits.roll(-1, dims=1),
            labels=torch.where(labels > 0, labels - 1, background),
            positives=positives,
            boxes=self.box_coder.decode_single(deltas, priors[positives]),
            gt_boxes=gt_boxes,
            image_ids=images,
            deltas=deltas,
            gt_deltas=gt_deltas[positives],
            activation="softmax",
            priors=priors[positives],
        )
