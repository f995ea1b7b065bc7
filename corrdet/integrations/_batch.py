"""What the frameworks' detectors have in common on their way to a MatchedPredictions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from corrdet.losses import Criterion, MatchedPredictions


class CriterionOwner(nn.Module):
    """A part of a foreign model that is given a Criterion, and counts its steps.

    Attributes:
        criterion: whose losses the model has.
        iteration: of the next step, which weights with a warm-up or schedule read. It is in no
            checkpoint: set it where a training is resumed.
        names: what ``loss_cls`` and ``loss_box_reg`` are called there.
    """

    criterion: Criterion
    iteration: int = 0
    names: Mapping[str, str] = {}

    def losses(
        self, matched: MatchedPredictions, normalizer: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Those of the Criterion, under the framework's names, of one step more."""
        self.iteration += 1
        losses = self.criterion(matched, normalizer, self.iteration - 1)
        return {self.names.get(name, name): loss for name, loss in losses.items()}


def ground_truth(
    targets: Sequence[Mapping[str, Tensor]], images: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes (P, 4) and classes (P,) of what positives are matched with.

    Args:
        targets: of each image ``boxes`` (n, 4) and ``labels`` (n,).
        images: (P,) int64, the image of each positive.
        indices: (P,) int64, the ground truth of that image.
    """
    counts = torch.tensor([len(target["labels"]) for target in targets], device=images.device)
    rows = indices + (counts.cumsum(0) - counts)[images]
    boxes, labels = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
    return boxes[rows], labels[rows]
