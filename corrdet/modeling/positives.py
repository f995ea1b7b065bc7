"""What detectors tell of the positives of a batch, how they count them, and who has bounds."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions


def latest_positives(matched: MatchedPredictions, criterion: Criterion) -> dict[str, Tensor]:
    """What the training logs of a batch, without gradient, (P,) each.

    Args:
        matched: the batch.
        criterion: that has just been called with it.

    Returns:
        ``scores``, ``ious`` and the factors of couplings that change the losses.
    """
    return {
        "scores": matched.scores.detach(),
        "ious": matched.ious.detach(),
        **criterion.latest_factors,
    }


def add_positives(
    outputs: list[dict], matched: MatchedPredictions, scores: Tensor | None = None
) -> None:
    """Give the output of each image its ``positives``, for beta_img.

    Args:
        outputs: of the images of a batch, changed in place.
        matched: of the same batch.
        scores: (P,) that positives are ranked by; by default those of the Criterion.
    """
    scores = matched.scores if scores is None else scores
    for image_id, output in enumerate(outputs):
        of_image = matched.image_ids == image_id
        output["positives"] = {"scores": scores[of_image], "ious": matched.ious[of_image]}


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """A count of each process, averaged over them: a scalar, not waited for."""
    count = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(count)
        count /= comm.get_world_size()
    return count


def check_image_bounds(cfg) -> None:
    """
    Raises:
        ValueError: bounds at image level are asked for without the ground truth.
    """
    if cfg.TEST.IMAGE_BOUNDS and not cfg.TEST.BETA_IMG:
        raise ValueError(
            "TEST.IMAGE_BOUNDS True needs the ground truth at evaluation: expected "
            "TEST.BETA_IMG True, got False"
        )


def refuse_image_bounds(cfg, architecture: str) -> None:
    """
    Raises:
        ValueError: bounds at image level are asked for of a detector that has none.
    """
    if cfg.TEST.IMAGE_BOUNDS:
        raise ValueError(
            f"TEST.IMAGE_BOUNDS is for dense detectors: expected False for {architecture}"
        )
