"""What detectors tell of the positives of a batch, how they count them, and who has bounds."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from corrdet.losses import Criterion, MatchedPredictions
from corrdet.losses.correlation import (
    average_ranks,
    concordance_correlation,
    pearson_correlation,
)

# How often Detectron2's trainer writes, and over how many iterations it smooths.
WRITER_PERIOD = 20


def criterion_losses(
    criterion: Criterion, matched: MatchedPredictions, normalizer: float | Tensor
) -> dict[str, Tensor]:
    """The losses of a training batch, of which is logged how well scores and IoUs agree."""
    storage = get_event_storage()
    losses, factors = criterion.losses_and_factors(matched, normalizer, storage.iter)
    log_agreement(storage, matched.scores.detach(), matched.ious.detach(), factors)
    return losses


def log_agreement(
    storage: EventStorage, scores: Tensor, ious: Tensor, factors: dict[str, Tensor]
) -> None:
    """Log how scores and IoUs of the batch's positives agree, whenever metrics are written.

    Writes ``correlation/pearson``, ``correlation/spearman`` and ``correlation/concordance``, each
    in [-1, 1]; ``AIC/sum`` and ``AIC/mean``, of abs(score - IoU) (HarmonicDet, Eq. 14); and of each
    factor ``positives/<name>-mean``, ``-p10``, ``-p50`` and ``-p90``.

    Args:
        storage: of the training.
        scores, ious: (P,) of the positives, without gradient.
        factors: (P,) each, by name, by which couplings have multiplied losses.
    """
    if (storage.iter + 1) % WRITER_PERIOD or not len(scores):
        return
    values = {}
    if len(scores) >= 2:
        ranks = average_ranks(scores), average_ranks(ious)
        values["correlation/pearson"] = pearson_correlation(scores, ious)
        values["correlation/spearman"] = pearson_correlation(*ranks)
        values["correlation/concordance"] = concordance_correlation(scores, ious)
    gaps = (scores.float() - ious.float()).abs()
    values["AIC/sum"], values["AIC/mean"] = gaps.sum(), gaps.mean()
    for name, factor in factors.items():
        # Not torch.quantile, which refuses more than 16 million values.
        ordered = factor.float().sort().values
        values[f"positives/{name}-mean"] = factor.float().mean()
        for percent in (10, 50, 90):
            place = round(percent / 100 * (len(ordered) - 1))
            values[f"positives/{name}-p{percent}"] = ordered[place]
    # One copy from the device for all of them.
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    for name, number in zip(values, numbers, strict=True):
        storage.put_scalar(name, number, smoothing_hint=False)


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
