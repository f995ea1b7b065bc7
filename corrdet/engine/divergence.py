"""Losses and gradients that are not finite: whose images it was, said by all processes."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.utils import comm

from corrdet.errors import CorrdetError

from .faults import GRACE, FailedElsewhere, Failure, channel
from .steps import NotFiniteError, TrainingStep, broken_gradients


class DivergedError(CorrdetError, FloatingPointError):
    """A loss or a gradient is NaN or infinite."""


class _DivergedElsewhere(FailedElsewhere, DivergedError):
    pass


def diverged(
    error: FloatingPointError, step: TrainingStep, batch, cfg: CfgNode, iteration: int
) -> DivergedError:
    """What to raise for an iteration that has not been finished.

    Processes that all have seen the gradient, their common one, find out together whose images it
    came from. A loss can be that of one process, which tells the others.

    Args:
        error: of the step.
        step: which has raised it.
        batch: of this process.
    """
    own = isinstance(error, NotFiniteError)
    if not own:  # Detectron2's: the first process has the mean of all processes' losses
        shared = channel()
        failure = shared.failure(wait=GRACE) if shared else None
        if failure:
            return _DivergedElsewhere(failure.told_by_another())
        return DivergedError(describe(str(error), batch, cfg, iteration))
    if comm.get_world_size() == 1:
        return DivergedError(describe(str(error), batch, cfg, iteration))
    if error.gradient_is_finite:
        message = describe(str(error), batch, cfg, iteration)
        channel().set_failure(message)
        return DivergedError(message)
    is_a_loss = comm.all_gather(any(not loss.isfinite() for loss in step.latest_losses.values()))
    guilty = is_a_loss[comm.get_rank()]
    if not any(is_a_loss):
        # Once more, each with its own gradient; parameters and optimizer are as they were.
        step.optimizer.zero_grad()
        step.backward(batch, synchronizes=False)
        guilty = bool(broken_gradients(step.model))
    messages = comm.all_gather((guilty, describe(str(error), batch, cfg, iteration)))
    if not any(is_guilty for is_guilty, _ in messages):  # each alone is finite, their sum is not
        return DivergedError(messages[comm.get_rank()][1])
    if guilty:
        return DivergedError(messages[comm.get_rank()][1])
    first = next(rank for rank, (is_guilty, _) in enumerate(messages) if is_guilty)
    return _DivergedElsewhere(Failure(first, messages[first][1]).told_by_another())


def describe(message: str, batch, cfg: CfgNode, iteration: int) -> str:
    """The message of an iteration, with the images of its batch and what to do."""
    images = ", ".join(image_names(batch)) or "not known"
    advice = (
        "Usual causes: a learning rate that is too high or a warm-up that is too short, images "
        "or boxes that are damaged. The last checkpoint is intact."
    )
    if cfg.MODEL.RESNETS.NORM == "FrozenBN" and not cfg.MODEL.WEIGHTS:
        advice += (
            " Without MODEL.WEIGHTS, MODEL.RESNETS.NORM FrozenBN leaves the backbone without "
            "normalization: BN or GN trains from scratch."
        )
    return (
        f"training stopped at iteration {iteration}: {message}\n"
        f"images of that batch: {images}\n{advice}"
    )


def image_names(batch) -> list[str]:
    """File names of a batch in Detectron2's format; none of another."""
    if not isinstance(batch, list | tuple):
        return []
    return [str(image.get("file_name", "?")) for image in batch if isinstance(image, Mapping)]
