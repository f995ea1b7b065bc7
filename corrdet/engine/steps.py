"""One step of training: losses, gradient, a look at both, and what the optimizer makes of them."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.names import kind_of
from corrdet.options import Key, at_least

declare(
    "SOLVER",
    ACCUMULATE=Key(
        1,
        at_least(1),
        "the images of an iteration, IMS_PER_BATCH, go through the model in so many parts, which "
        "takes less memory; losses and batch norms see a part at a time",
    ),
)


def check_accumulation(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: the images of a process cannot be divided into equal parts.
    """
    own, parts = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), cfg.SOLVER.ACCUMULATE
    if own % parts:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {parts}, which does not divide the {own} image(s) that each "
            "process has of SOLVER.IMS_PER_BATCH"
        )


def check_norms(model: nn.Module, device: str) -> None:
    """
    Raises:
        ConfigError: a batch norm over all processes that needs GPUs.
    """
    is_apart = comm.get_world_size() == 1 or device.startswith("cuda")
    if not is_apart and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise ConfigError("SyncBN needs GPUs: expected naiveSyncBN, which does the same on CPUs")


def batch_norm_of_one_value(error: ValueError, cfg: CfgNode) -> ConfigError | None:
    """What to say when PyTorch's batch norm has nothing to take a variance of.

    That of one image whose last feature map is 1 x 1 has a single value in each channel.

    Args:
        error: of a model in training.

    Returns:
        None if the error is another one.
    """
    if not str(error).startswith("Expected more than 1 value per channel when training"):
        return None
    own = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() // cfg.SOLVER.ACCUMULATE
    return ConfigError(
        f"a batch norm has one value in each channel: {own} image(s) go through the model at once, "
        "and its smallest feature map is 1 x 1; expected more images (SOLVER.IMS_PER_BATCH over "
        "the processes and SOLVER.ACCUMULATE), larger ones (INPUT.MIN_SIZE_TRAIN), or a NORM of "
        "the head that is no batch norm, such as GN"
    )


class NotFiniteError(FloatingPointError):
    """Before the optimizer's step: a loss of this process or the gradient is NaN or infinite.

    Attributes:
        gradient_is_finite: that of all processes, which is the same on all of them.
    """

    def __init__(self, message: str, *, gradient_is_finite: bool):
        super().__init__(message)
        self.gradient_is_finite = gradient_is_finite


class TrainingStep(SimpleTrainer):
    """Detectron2's step, with a look at the gradient, in parts if asked, and mixed precision.

    Attributes:
        latest_losses: of this process in the latest iteration, without gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        parts: int = 1,
        mixed_precision_on: str | None = None,
    ):
        """
        Args:
            model: gives losses; perhaps in a DistributedDataParallel.
            loader: gives batches.
            optimizer: of the model.
            parts: in which a batch goes through the model; batches are lists then.
            mixed_precision_on: type of device, "cuda" or "cpu"; None for full precision.
        """
        super().__init__(model, loader, optimizer)
        self.latest_losses: dict[str, Tensor] = {}
        self._options = {"parts": parts, "mixed_precision_on": mixed_precision_on}
        self._parts = parts
        self._precision_device = mixed_precision_on
        self.grad_scaler = mixed_precision_on and torch.amp.GradScaler(mixed_precision_on)

    def with_loader(self, loader: Iterable) -> "TrainingStep":
        """The same with another loader."""
        return type(self)(self.model, loader, self.optimizer, **self._options)

    def run_step(self) -> None:
        """
        Raises:
            NotFiniteError: the weights have not been changed.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self.backward(batch)
        self.latest_losses = {name: loss.detach() for name, loss in losses.items()}
        self._check(self.latest_losses)
        self._write_metrics(losses, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self._scaled_step()

    def backward(self, batch, *, synchronizes: bool = True) -> dict[str, Tensor]:
        """Add the gradient of a batch to that of the parameters.

        Args:
            batch: of this process.
            synchronizes: whether gradients are averaged over the processes.

        Returns:
            the losses, on average over the parts.
        """
        parts = [*_split(batch, self._parts)]
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            with _apart(self.model, not (synchronizes and is_last)):
                with self._precision():
                    losses = self.model(part)
                    if isinstance(losses, Tensor):
                        losses = {"total_loss": losses}
                    if len(parts) > 1:
                        losses = {name: loss / len(parts) for name, loss in losses.items()}
                    total = sum(losses.values())
                (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss
        return sums

    def _precision(self):
        if self._precision_device is None:
            return nullcontext()
        return torch.autocast(self._precision_device)

    def _check(self, losses: dict[str, Tensor]) -> None:
        # All numbers come from the device at once; Detectron2 asks for the losses anyway.
        numbers = [*losses.values()]
        # Infinities of a scaled gradient are the scaler's business.
        largest = largest_gradient(self.model) if self.grad_scaler is None else None
        if largest is not None:
            numbers.append(largest)
        values = torch.stack([number.reshape(()) for number in numbers])
        finite = values.isfinite().tolist()
        if all(finite):
            return
        broken = [
            f"{name} is {loss.item()}"
            for (name, loss), is_finite in zip(losses.items(), finite, strict=False)
            if not is_finite
        ]
        gradient_is_finite = largest is None or finite[-1]
        message = ", ".join(broken) or broken_gradients(self.model)
        raise NotFiniteError(message, gradient_is_finite=gradient_is_finite)

    def _scaled_step(self) -> None:
        before = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        after = self.grad_scaler.get_scale()
        if after >= before:
            return
        logging.getLogger(__name__).info(
            "mixed precision: iteration %d changes no weights, as its gradient times the scale %g "
            "overflows; the scale is %g now",
            self.iter,
            before,
            after,
        )
        if after < 1:
            # Scaling cannot be why.
            raise NotFiniteError(broken_gradients(self.model), gradient_is_finite=False)

    def state_dict(self) -> dict:
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])


def _apart(model: nn.Module, is_apart: bool):
    """Without averaging gradients over the processes."""
    if is_apart and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def _split(batch, parts: int) -> Iterator:
    if parts == 1:
        yield batch
        return
    if not isinstance(batch, list) or len(batch) % parts:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {parts}, which needs batches that are lists of as many images, "
            f"or a multiple; the loader gives {kind_of(batch)}"
            + (f" of {len(batch)}" if isinstance(batch, list) else "")
        )
    size = len(batch) // parts
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def largest_gradient(model: nn.Module) -> Tensor | None:
    """The largest absolute value of a gradient, NaN if one is; None without gradients.

    Returns:
        a scalar, which is not waited for.
    """
    gradients = [_values(p.grad) for p in model.parameters() if p.grad is not None]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return None
    # Not the Euclidean norm, whose squares may overflow.
    norms = torch._foreach_norm(gradients, ord=float("inf"))
    return torch.stack(norms).max()


def _values(gradient: Tensor) -> Tensor:
    # Sparse gradients, of embeddings for example, have values only where they are not 0.
    return gradient._values() if gradient.is_sparse else gradient


def broken_gradients(model: nn.Module, most: int = 3) -> str:
    """Which parameters have a gradient that is not finite, in words; '' for none."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    broken = [
        name for name, gradient in gradients.items() if not _values(gradient).isfinite().all()
    ]
    if not broken:
        return ""
    rest = f" and {len(broken) - most} more" if len(broken) > most else ""
    return (
        f"the losses are finite, but the gradient of {len(broken)} of {len(gradients)} parameters "
        f"is not: {', '.join(broken[:most])}{rest}"
    )
