"""Hard negative mining as part of matching (Liu et al. 2016, Sec. 2.2)."""

from collections.abc import Callable

import torch
from detectron2.structures import Instances
from torch import Tensor

from corrdet.activation import background_losses, num_classes
from corrdet.matching import hard_negative_mining

from ..dense.detector import Assignment, Samples


class MinedMatcher:
    """A matcher whose easy negatives are labelled as ignored, so that no loss has to know of it."""

    def __init__(
        self,
        matcher: Callable[[Samples, list[Instances]], Assignment],
        activation: str,
        negatives_per_positive: float,
    ):
        """
        Args:
            matcher: what labels the samples.
            activation: of the class scores, "sigmoid" or "softmax".
            negatives_per_positive: of each image, the hardest that are trained on; 0 for all.
        """
        self.matcher = matcher
        self.activation = activation
        self.negatives_per_positive = negatives_per_positive

    @torch.no_grad()
    def __call__(self, samples: Samples, gt_instances: list[Instances]) -> Assignment:
        assignment = self.matcher(samples, gt_instances)
        labels = mined_labels(
            assignment.labels,
            samples.logits,
            len(gt_instances),
            self.activation,
            self.negatives_per_positive,
        )
        return assignment._replace(labels=labels)


@torch.no_grad()
def mined_labels(
    labels: Tensor, logits: Tensor, num_images: int, activation: str, negatives_per_positive: float
) -> Tensor:
    """Labels with -1 for the negatives that hard negative mining leaves out.

    Negatives are hard by their cross entropy, whichever loss is trained.

    Args:
        labels: (N x R,); C for background, -1 for ignored.
        logits: (N x R, C), or (N x R, C + 1) for a softmax.
        num_images: N.
        activation: "sigmoid" or "softmax".
        negatives_per_positive: of each image; 0 for all.
    """
    if not negatives_per_positive:
        return labels
    keep = hard_negative_mining(
        background_losses(logits.float(), activation).view(num_images, -1),
        labels.view(num_images, -1),
        num_classes(logits, activation),
        negatives_per_positive,
    )
    return torch.where(keep.flatten(), labels, -1)
